"""Models in float16 against the same in float32, in ONNX Runtime."""

import onnx
import pytest
from onnx import TensorProto
from test_onnx_qdq import NAMES, Case, case, run, valid

from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_half import to_float16
from zqlib.quantization.scheme import QuantScheme


def models(name: str) -> tuple[Case, onnx.ModelProto, onnx.ModelProto]:
    given = case(name, QuantScheme())
    model = export_float(given.graph, {"key": "value"})
    return given, model, to_float16(model)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_the_same_to_eleven_bits(name: str) -> None:
    given, model, half = models(name)
    onnx.checker.check_model(half, full_check=True)
    (expected, lengths), (actual, _) = (
        run(m, given.features, given.lengths) for m in (model, half)
    )
    pair = valid(actual, lengths), valid(expected, lengths)
    difference = float((pair[0] - pair[1]).abs().max())
    assert 0 < difference < 2e-3 * float(pair[1].abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_half_and_interfaces_are_not(name: str) -> None:
    _, model, half = models(name)
    assert half.metadata_props == model.metadata_props
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)
    kinds = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) > 2}
    assert kinds == {TensorProto.FLOAT16}
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in model.graph.initializer}


def test_angles_of_positions_stay_in_float32() -> None:
    _, _, half = models("conformer")
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(half).graph.value_info
    }
    angles = [node for node in half.graph.node if node.op_type in ("Sin", "Cos")]
    assert angles
    assert {types[node.input[0]] for node in angles} == {TensorProto.FLOAT}
