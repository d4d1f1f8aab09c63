"""Our s8s8 models against the written rules of TensorRT, and models that break each of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, helper, numpy_helper
from test_onnx_qdq import CHECKPOINTS, FLAVOURS, NAMES, case

from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_half import to_float16
from zqlib.export.onnx_qdq import export_qdq
from zqlib.export.tensorrt_rules import OPERATORS, Rule, violations, weighted_nodes
from zqlib.models import load_model
from zqlib.quantization.fold import fold
from zqlib.quantization.rounding import calibrate_rounded


@pytest.fixture
def model() -> onnx.ModelProto:
    return case("residual", FLAVOURS["s8s8"]).qdq()


@pytest.mark.parametrize("name", NAMES)
def test_tiny_models_keep_the_rules(name: str) -> None:
    given = case(name, FLAVOURS["s8s8"])
    quantized, floating = given.qdq(), export_float(given.graph)
    assert list(map(str, violations(quantized))) == []
    assert len(weighted_nodes(quantized)) == len(weighted_nodes(floating)) == given.layers
    for model in (floating, to_float16(floating)):
        assert list(map(str, violations(model, quantized=False))) == []


def assert_rules_are_kept(path: Path) -> None:
    scheme = FLAVOURS["s8s8"]
    graph = fold(load_model(path).network, scheme)
    noise = torch.randn(1, graph.channels, 64, generator=torch.Generator().manual_seed(0))
    scales = calibrate_rounded(graph, [(noise, torch.tensor([64]))], scheme)
    assert list(map(str, violations(export_qdq(graph, scales, scheme)))) == []


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_our_own_checkpoints_keep_the_rules(path: Path) -> None:
    assert_rules_are_kept(path)


@pytest.mark.parametrize("name", ["quartznet_nemo", "conformer_nemo"])
def test_the_real_models_keep_the_rules(request: pytest.FixtureRequest, name: str) -> None:
    assert_rules_are_kept(request.getfixturevalue(name))


def test_every_rule_has_its_source() -> None:
    assert all(rule.source.startswith("https://") and rule.text for rule in Rule)


def test_the_list_of_operators_is_what_is_written() -> None:
    models = [case(name, FLAVOURS["s8s8"]).qdq() for name in NAMES]
    assert {node.op_type for model in models for node in model.graph.node} == set(OPERATORS)


def test_the_other_flavour_is_not_for_tensorrt() -> None:
    broken = {violation.rule for violation in violations(case("residual", FLAVOURS["u8s8"]).qdq())}
    assert {Rule.TYPE, Rule.ZERO_POINT, Rule.DIRECT, Rule.BIAS} <= broken


def first(model: onnx.ModelProto, kind: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def weight_of(model: onnx.ModelProto) -> NodeProto:
    """The DequantizeLinear of the first convolution's weight."""
    name = first(model, "Conv").input[1]
    return next(node for node in model.graph.node if node.output[0] == name)


def store(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Replace an initializer."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def another_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("own", 1))


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def unknown_operator(model: onnx.ModelProto) -> None:
    first(model, "Relu").op_type = "Erf"


def two_outputs(model: onnx.ModelProto) -> None:
    first(model, "Relu").output.append("more")


def integers_in_an_addition(model: onnx.ModelProto) -> None:
    node = first(model, "Add")
    node.input[0] = first(model, "QuantizeLinear").output[0]


def dynamic_bands(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "bands"


def zero_point(model: onnx.ModelProto) -> None:
    store(model, first(model, "QuantizeLinear").input[2], np.array(3, np.int8))


def unsigned(model: onnx.ModelProto) -> None:
    store(model, first(model, "QuantizeLinear").input[2], np.array(0, np.uint8))


def no_zero_point(model: onnx.ModelProto) -> None:
    del first(model, "QuantizeLinear").input[2]


def zero_scale(model: onnx.ModelProto) -> None:
    store(model, first(model, "QuantizeLinear").input[1], np.array(0, np.float32))


def scale_per_channel(model: onnx.ModelProto) -> None:
    store(model, first(model, "QuantizeLinear").input[1], np.ones(8, np.float32))


def one_scale_of_a_weight(model: onnx.ModelProto) -> None:
    store(model, weight_of(model).input[1], np.array(0.1, np.float32))


def wrong_axis_of_a_weight(model: onnx.ModelProto) -> None:
    node = weight_of(model)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 1))


def wrong_axis_of_a_linear_layer(model: onnx.ModelProto) -> None:
    name = first(model, "MatMul").input[1]
    (node,) = (node for node in model.graph.node if node.output[0] == name)
    node.attribute[0].i = 0


def float_weight(model: onnx.ModelProto) -> None:
    conv, node = first(model, "Conv"), weight_of(model)
    (tensor,) = (t for t in model.graph.initializer if t.name == node.input[0])
    store(model, tensor.name, numpy_helper.to_array(tensor).astype(np.float32))
    conv.input[1] = tensor.name


def float_data(model: onnx.ModelProto) -> None:
    first(model, "Conv").input[0] = "audio_signal"


def one_spatial_axis(model: onnx.ModelProto) -> None:
    name = weight_of(model).input[0]
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    store(model, name, numpy_helper.to_array(tensor)[:, :, 0])


def integer_bias(model: onnx.ModelProto) -> None:
    name = next(n for n in model.graph.node if n.op_type == "Conv" and len(n.input) > 2).input[2]
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    store(model, name, np.zeros(tuple(tensor.dims), np.int32))


def rounded_before_its_relu(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    writer = {node.output[0]: node.op_type for node in nodes}
    relu = next(n for n in nodes if n.op_type == "Relu" and writer[n.input[0]] == "Conv")
    quantize, dequantize = first(model, "QuantizeLinear"), first(model, "DequantizeLinear")
    pair = [
        helper.make_node("QuantizeLinear", [relu.input[0], *quantize.input[1:]], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", *dequantize.input[1:]], ["dq"], "dq"),
    ]
    relu.input[0] = "dq"
    place = nodes.index(relu)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *pair, *nodes[place:]])


Break = Callable[[onnx.ModelProto], None]
BROKEN: list[tuple[Break, Rule]] = [
    (another_domain, Rule.OPSET),
    (old_opset, Rule.OPSET),
    (unknown_operator, Rule.OPERATOR),
    (two_outputs, Rule.OPERATOR),
    (integers_in_an_addition, Rule.TYPE),
    (dynamic_bands, Rule.AXES),
    (zero_point, Rule.ZERO_POINT),
    (unsigned, Rule.ZERO_POINT),
    (no_zero_point, Rule.PAIR),
    (integers_in_an_addition, Rule.PAIR),
    (zero_scale, Rule.SCALE),
    (scale_per_channel, Rule.PER_TENSOR),
    (one_scale_of_a_weight, Rule.PER_CHANNEL),
    (wrong_axis_of_a_weight, Rule.PER_CHANNEL),
    (wrong_axis_of_a_linear_layer, Rule.PER_CHANNEL),
    (float_weight, Rule.INPUTS),
    (float_data, Rule.INPUTS),
    (one_spatial_axis, Rule.DIRECT),
    (integer_bias, Rule.BIAS),
    (rounded_before_its_relu, Rule.FUSION),
]


def test_every_rule_is_broken_below() -> None:
    assert {rule for _, rule in BROKEN} == set(Rule)


@pytest.mark.parametrize(
    ("broken", "rule"), BROKEN, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_broken_model_is_seen(model: onnx.ModelProto, broken: Break, rule: Rule) -> None:
    broken(model)
    found = violations(model)
    assert rule in {violation.rule for violation in found}
    assert any(rule.source in str(violation) for violation in found)
