"""Reports of the engine inspector, written by hand in the documented formats of 10.x and 11."""

import json
from typing import Any

import pytest

from zqlib.errors import InputError
from zqlib.export.tensorrt_layers import engine_layers, not_int8


def layer_10(name: str, precision: str, weights: str | None, **more: Any) -> dict[str, Any]:
    """As in the guide to TensorRT 10."""
    layout = f"Thirty-two wide channel vectorized row major {precision} format."
    tensor = {"Name": "x", "Dimensions": [1, 64, 1, 99], "Format/Datatype": layout}
    described = {
        "Name": name, "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor],
        "ParameterType": "Convolution", "TacticName": "sm75_i8i8_i8i32_f32",
    }  # fmt: skip
    if weights:
        described["Weights"] = {"Type": weights, "Count": 4096}
    return described | more


def layer_11(name: str, precision: str, **more: Any) -> dict[str, Any]:
    """As in the guide to the migration to TensorRT 11: format and type apart."""
    tensor = {
        "Name": "x",
        "Dimensions": [1, 99, 64],
        "Format": "Row major linear",
        "DataType": precision,
    }
    return {
        "Name": "__mye1", "LayerType": "gemm", "Inputs": [tensor], "Outputs": [],
        "Metadata": f"[ONNX Layer: {name}.weight]\u001e[ONNX Layer: {name} | a | b]",
    } | more  # fmt: skip


def report(*layers: object) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["audio_signal"]})


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (layer_10("conv + relu", "Int8", "Int8"), "INT8"),
        (layer_10("conv + relu", "Float", "Int8"), "INT8"),  # quantizes its input itself
        (layer_10("conv + relu", "Int8", "Float"), "FP32"),
        (layer_10("conv", "Half", "Half"), "FP16"),
        (layer_10("conv", "Int8", None), "INT8"),
        (layer_11("conv", "INT8"), "INT8"),
        (layer_11("conv", "FP32"), "FP32"),
        (layer_11("conv", "BFloat16"), "BF16"),
        (layer_11("conv", "N/A due to dynamic shapes"), "unknown"),
        (layer_11("conv", "INT8", Inputs=[]), "unknown"),
    ],
)
def test_precision(layer: dict[str, Any], precision: str) -> None:
    (found,) = engine_layers(report(layer))
    assert found.precision == precision
    assert found.multiplies and "conv" in found.nodes
    expected = {} if precision == "INT8" else {"conv": precision}
    assert not_int8([found], ["conv"]) == expected


def test_only_what_multiplies_proves_int8() -> None:
    copy = layer_11("conv", "INT8", LayerType="Reformat")
    kernel = layer_11("conv", "INT8", LayerType="kgen")
    assert not_int8(engine_layers(report(copy, kernel)), ["conv"]) == {"conv": "unknown"}
    float_kernel = layer_11("conv", "FP32", LayerType="kgen")  # the sum after it, say
    both = engine_layers(report(layer_11("conv", "INT8"), float_kernel))
    assert not_int8(both, ["conv"]) == {}


def test_every_layer_counts() -> None:
    layers = engine_layers(report(layer_11("a", "INT8"), layer_11("b", "FP16")))
    assert not_int8(layers, ["a", "b", "c"]) == {"b": "FP16", "c": "unknown"}
    split = engine_layers(report(layer_11("a", "INT8"), layer_11("a", "FP32")))
    assert not_int8(split, ["a"]) == {"a": "FP32"}


def test_a_name_that_begins_another_is_not_the_other() -> None:
    assert not_int8(engine_layers(report(layer_11("conv.1", "INT8"))), ["conv"]) != {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "not as documented"),
        ('{"Bindings": []}', "not as documented"),
        ("[]", "not as documented"),
        (report("conv + relu"), "only names"),
        (report(), "only names"),
    ],
)
def test_other_reports_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine_layers(text)
