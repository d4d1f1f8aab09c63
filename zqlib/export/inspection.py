"""What an ONNX model is made of: types of its tensors, and layers that run in integers."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, inliner, shape_inference

from zqlib.export.runtime import open_session

__all__ = ["LayerCount", "count_layers", "float_tensors", "optimized"]

_INTEGERS = {
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT64, TensorProto.BOOL,
}  # fmt: skip

_INTEGER_LAYERS = {
    "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QLinearConv", "QLinearMatMul", "QGemm",
}  # fmt: skip
_FLOAT_LAYERS = {"Conv", "FusedConv", "NhwcFusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}


@dataclass(frozen=True)
class LayerCount:
    """How the convolutions and matrix products of a model run.

    Attributes:
        integer: names of the nodes that multiply 8-bit integers.
        float: names of convolutions and linear layers that multiply floating-point numbers.
        float_products: names of float products of two activations, as in attention.
    """

    integer: tuple[str, ...]
    float: tuple[str, ...]
    float_products: tuple[str, ...]


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of all tensors whose elements are not known to be integers or booleans.

    Looks at inputs, outputs, initializers and whatever a node writes, inside functions too.
    """
    graph = shape_inference.infer_shapes(inliner.inline_local_functions(model)).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    written = {name for node in graph.node for name in node.output}
    return sorted(name for name in types.keys() | written if types.get(name) not in _INTEGERS)


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that ONNX Runtime executes on this processor, after all its optimizations.

    Raises:
        InputError: ONNX Runtime is missing or refuses the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        open_session(model, optimized=path)
        return onnx.load(path)


def count_layers(model: onnx.ModelProto) -> LayerCount:
    """Count the convolutions and matrix products that ONNX Runtime runs in integers, and in float.

    Raises:
        InputError: ONNX Runtime is missing or refuses the model.
    """
    graph = optimized(model).graph
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # a weight that is dequantized when the model runs
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            stored.add(node.output[0])
    integer, floating, products = list[str](), list[str](), list[str]()
    for node in graph.node:
        if node.op_type in _INTEGER_LAYERS:
            integer.append(node.name)
        elif node.op_type in _FLOAT_LAYERS:
            with_weights = any(name in stored for name in node.input[:2])
            (floating if with_weights else products).append(node.name)
    return LayerCount(tuple(integer), tuple(floating), tuple(products))
