"""What the inspection of ONNX models sees, and what it must not overlook."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper, parser
from tiny import features, network

from zqlib.errors import InputError
from zqlib.export.inspection import count_layers, float_tensors, optimized
from zqlib.export.onnx_builder import GraphBuilder
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_qdq import export_qdq
from zqlib.quantization.fold import fold
from zqlib.quantization.rounding import calibrate_rounded
from zqlib.quantization.scheme import QuantScheme

X = ("x", TensorProto.INT8, ("n",))
Y = ("y", TensorProto.INT8, ("n",))


def test_a_float_between_integers_is_seen() -> None:
    graph = GraphBuilder(("x", "y"))
    real = graph.cast("x", TensorProto.FLOAT, "real")
    graph.result(graph.cast(real, TensorProto.INT8), "y")
    assert float_tensors(graph.model("g", [X], [Y], 18)) == ["real"]


def test_a_float_initializer_is_seen() -> None:
    graph = GraphBuilder(("x", "y"))
    graph.constant(torch.ones(3, dtype=torch.float16), "half")
    graph.result("x", "y")
    assert float_tensors(graph.model("g", [X], [Y], 18)) == ["half"]


def test_a_float_inside_a_function_is_seen() -> None:
    function = parser.parse_function(
        '<domain: "own", opset_import: ["": 18]>\n'
        "Halve (x) => (y) { real = Cast <to = 1> (x) y = Cast <to = 3> (real) }"
    )
    graph = GraphBuilder(("x", "y"))
    graph.result(graph.add("Halve", "x", domain="own"), "y")
    (seen,) = float_tensors(graph.model("g", [X], [Y], 18, [function]))
    assert "real" in seen


def test_an_unknown_type_counts_as_float() -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="nobody")
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info(*X)],
        [helper.make_tensor_value_info("z", TensorProto.INT8, ("n",))],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody", 1)]
    assert float_tensors(helper.make_model(graph, opset_imports=opsets)) == ["y"]


def test_names_are_given_once() -> None:
    graph = GraphBuilder(("y",))
    names = [graph.constant(1, "y"), graph.constant(1, "y"), graph.add("Neg", "a", output="y.1")]
    assert len({"y", *names}) == 4


def qdq() -> onnx.ModelProto:
    graph = fold(network("dense"), QuantScheme())
    scales = calibrate_rounded(graph, [features([30])], QuantScheme())
    return export_qdq(graph, scales, QuantScheme())


def test_a_layer_that_is_left_in_float_is_counted() -> None:
    """With a bias of another scale than the product's, ONNX Runtime takes the float convolution."""
    model = qdq()
    assert count_layers(model).float == ()
    (scale,) = (n for n in model.graph.node if n.input[:1] == ["block1.conv0.weight.scale"])
    scale.op_type = "Add"  # it was a product
    count = count_layers(model)
    assert (len(count.integer), len(count.float)) == (3, 1)


def test_what_runs_is_another_graph() -> None:
    model = export_float(fold(network("dense"), QuantScheme()))
    assert len(optimized(model).graph.node) < len(model.graph.node)


def test_a_model_that_cannot_run_is_refused() -> None:
    model = qdq()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match="NoSuchOperator"):
        count_layers(model)
