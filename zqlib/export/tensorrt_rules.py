"""What TensorRT 10 and 11 ask of an ONNX model with Q/DQ: a written list, and its check.

TensorRT itself is not asked. The list is what its documents and its ONNX parser say; every rule
carries the page or the source file that it was read from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

__all__ = ["OPERATORS", "Rule", "Violation", "violations", "weighted_nodes"]

_PARSER = "https://github.com/onnx/onnx-tensorrt/blob"
_OPERATORS = f"{_PARSER}/main/docs/operators.md"  # read as of TensorRT 10.15
_IMPORTERS = f"{_PARSER}/dd0a3a9f8794ae4f0316ed07ea68cda9b944bb3c/onnxOpImporters.cpp"
_UTILS = f"{_PARSER}/fa5aa9f61e7781d2ca8f5351d42c1f19525a6124/importerUtils.cpp"
_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/latest"
_QUANTIZED = f"{_DOCS}/inference-library/work-quantized-types.html"
_EXPLICIT = f"{_DOCS}/inference-library/quantized-types-explicit-quantization.html"


class Rule(Enum):
    """A rule: what it says, and where that was read."""

    OPSET = (
        "only standard operators, of an opset from 9 to 24",
        f"{_DOCS}/reference/onnx-opset-guide.html",
    )
    OPERATOR = ("an operator of the parser's list, with one output", _OPERATORS)
    TYPE = ("element types that the parser's list gives for the operator", _OPERATORS)
    AXES = (
        "dynamic axes only where the optimization profile has a range",
        f"{_DOCS}/_static/python-api/infer/Core/OptimizationProfile.html",
    )
    ZERO_POINT = ("int8 with zero point 0", _IMPORTERS)
    SCALE = ("a stored, positive, finite scale", _IMPORTERS)
    PER_TENSOR = ("one scale for an activation", _QUANTIZED)
    PER_CHANNEL = ("one scale for each output channel of a weight, on its axis", _QUANTIZED)
    PAIR = (
        "int8 goes from Q, or from where it is stored, to DQ and nowhere else",
        _OPERATORS,
    )
    INPUTS = ("a convolution or linear layer reads data and weight from DQ", _EXPLICIT)
    DIRECT = (
        "two spatial axes, else the parser puts a reshape between DQ and convolution",
        _UTILS,
    )
    BIAS = (
        "the bias of a convolution is stored, in float, one number for each output channel",
        _IMPORTERS,
    )
    FUSION = (
        "no Q/DQ between a convolution and its ReLU, which would be two kernels",
        "https://docs.nvidia.com/deeplearning/tensorrt/developer-guide/index.html#qdq-placement-recs",
    )

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source


_FLOATS: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16}
_NUMBERS: set[int] = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ALL: set[int] = _NUMBERS | {TensorProto.BOOL}
_INT8: set[int] = {TensorProto.INT8}

OPERATORS: dict[str, set[int]] = {
    "Add": _NUMBERS, "Cast": _ALL, "Concat": _ALL, "Conv": _FLOATS, "Cos": _FLOATS,
    "DequantizeLinear": _INT8 | _FLOATS, "Div": _NUMBERS, "Identity": _ALL,
    "LayerNormalization": _FLOATS, "Less": _NUMBERS, "LogSoftmax": _FLOATS, "MatMul": _FLOATS,
    "Mul": _NUMBERS, "Neg": _NUMBERS, "Pad": _NUMBERS, "QuantizeLinear": _INT8 | _FLOATS,
    "Range": _NUMBERS, "Relu": _NUMBERS, "Reshape": _ALL, "Shape": _ALL, "Sigmoid": _FLOATS,
    "Sin": _FLOATS, "Slice": _ALL, "Softmax": _FLOATS, "Sub": _NUMBERS, "Transpose": _ALL,
    "Where": _ALL,
}  # fmt: skip
"""Types of what an operator may read, for those that `zqlib.export` writes (see `Rule.TYPE`)."""

_DYNAMIC = {("audio_signal", 0), ("audio_signal", 2), ("length", 0)}


@dataclass(frozen=True)
class Violation:
    """A rule, and the node, input or model that breaks it."""

    rule: Rule
    name: str

    def __str__(self) -> str:
        return f"{self.name} breaks the rule: {self.rule.text} ({self.rule.source})"


def weighted_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions, and the matrix products with a stored (dequantized) weight."""
    return _Graph(model).weighted


def violations(model: onnx.ModelProto, quantized: bool = True) -> list[Violation]:
    """Everything in a model that breaks a rule, in the order of its nodes.

    Args:
        model: as `zqlib.export` writes it.
        quantized: whether its layers should be quantized, as in the flavour s8s8.
    """
    graph = _Graph(model, quantized)
    return [*_of_model(model), *(v for node in model.graph.node for v in _of_node(graph, node))]


class _Graph:
    """Who writes and who reads each tensor, and of which type it is."""

    def __init__(self, model: onnx.ModelProto, quantized: bool = True) -> None:
        self.quantized = quantized
        inferred = shape_inference.infer_shapes(model).graph
        values = [*inferred.input, *inferred.output, *inferred.value_info]
        self.stored = {t.name: t for t in model.graph.initializer}
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: tensor.data_type for name, tensor in self.stored.items()}
        self.writer = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        weighted = (n.name for n in model.graph.node if n.op_type == "Conv" or self._is_linear(n))
        self.weighted = list(weighted)

    def written_by(self, name: str, kind: str) -> NodeProto | None:
        """The node of that kind that writes a tensor."""
        node = self.writer.get(name)
        return node if node is not None and node.op_type == kind else None

    def stored_weight(self, name: str) -> TensorProto | None:
        """The initializer behind a dequantized (or a float) weight."""
        dequantize = self.written_by(name, "DequantizeLinear")
        return self.stored.get(dequantize.input[0] if dequantize else name)

    def values(self, name: str) -> np.ndarray | None:
        """An initializer."""
        return numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def _is_linear(self, node: NodeProto) -> bool:
        return node.op_type == "MatMul" and self.stored_weight(node.input[1]) is not None


def _of_model(model: onnx.ModelProto) -> Iterator[Violation]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.keys() != {""} or not 9 <= opsets[""] <= 24:
        yield Violation(Rule.OPSET, model.graph.name)
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        dynamic = {(value.name, i) for i, axis in enumerate(axes) if not axis.dim_value}
        if not dynamic <= _DYNAMIC:
            yield Violation(Rule.AXES, value.name)


def _of_node(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    allowed = OPERATORS.get(node.op_type)
    if allowed is None or len(node.output) != 1 or node.domain:
        yield Violation(Rule.OPERATOR, node.name)
        return
    if any(graph.types.get(name) not in allowed for name in node.input if name):
        yield Violation(Rule.TYPE, node.name)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _of_rounding(graph, node)
    elif graph.quantized and node.name in graph.weighted:
        yield from _of_layer(graph, node)
    elif node.op_type == "Relu" and _is_rounded_convolution(graph, node.input[0]):
        yield Violation(Rule.FUSION, node.name)


def _of_rounding(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    """Q and DQ: zero point, scale, and who is on the side of the integers."""
    zero = graph.values(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) > 2 and (zero is None or zero.dtype != np.int8 or zero.any()):
        yield Violation(Rule.ZERO_POINT, node.name)
    scale = graph.values(node.input[1])
    if scale is None or not np.all(np.isfinite(scale) & (scale > 0)):
        yield Violation(Rule.SCALE, node.name)
    elif scale.size != 1 and node.input[0] not in graph.stored:
        yield Violation(Rule.PER_TENSOR, node.name)
    if node.op_type == "QuantizeLinear":
        readers = graph.readers.get(node.output[0], [])
        if len(node.input) < 3 or any(r.op_type != "DequantizeLinear" for r in readers):
            yield Violation(Rule.PAIR, node.name)
    elif node.input[0] not in graph.stored and not graph.written_by(
        node.input[0], "QuantizeLinear"
    ):
        yield Violation(Rule.PAIR, node.name)


def _of_layer(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    """A convolution, or a product with a weight."""
    data, dequantize = (graph.written_by(name, "DequantizeLinear") for name in node.input[:2])
    weight = graph.stored_weight(node.input[1])
    if data is None or dequantize is None or weight is None:
        yield Violation(Rule.INPUTS, node.name)
        return
    convolves = node.op_type == "Conv"
    axis, channels = (0, weight.dims[0]) if convolves else (1, weight.dims[-1])
    scale = graph.values(dequantize.input[1])
    if scale is None or scale.shape != (channels,) or _attribute(dequantize, "axis", 1) != axis:
        yield Violation(Rule.PER_CHANNEL, node.name)
    if convolves and len(weight.dims) != 4:
        yield Violation(Rule.DIRECT, node.name)
    if convolves and len(node.input) > 2:
        bias = graph.values(node.input[2])
        if bias is None or bias.shape != (channels,) or bias.dtype.kind != "f":
            yield Violation(Rule.BIAS, node.name)


def _is_rounded_convolution(graph: _Graph, name: str) -> bool:
    dequantize = graph.written_by(name, "DequantizeLinear")
    quantize = dequantize and graph.written_by(dequantize.input[0], "QuantizeLinear")
    return bool(quantize and graph.written_by(quantize.input[0], "Conv"))


def _attribute(node: NodeProto, name: str, default: int) -> int:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return int(values.get(name, default))
