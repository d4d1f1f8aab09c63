"""An integer program as an ONNX model in which no tensor is of floating point.

The model computes what `zqlib.integer.reference` does, bit for bit, beyond each length too:

    features (batch, channels, frames) int8 or uint8, length (batch,) int64
    -> tokens (batch, frames') int32, logits (batch, classes, frames') int32, output_length (batch,)

Convolutions are `ConvInteger`, attention's products `MatMulInteger`, in the combinations of signed
and unsigned bytes that ONNX Runtime multiplies exactly on every processor: on x86 without VNNI, a
matrix of uint8 times one of int8 saturates. All else is int64 arithmetic, see
`zqlib.export.onnx_functions`. Every operator of a program can be said; refusals cannot: the
reference raises an error at features out of range, a length beyond the frames, or an utterance too
short for a convolution, and the model takes what it gets. (More frames than the table of positions
has rows remain an error: ONNX Runtime refuses the index.) Weights are int8, whatever their bits.
"""

from collections.abc import Mapping

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from zqlib.export.onnx_attention import attention, positions, valid_frames
from zqlib.export.onnx_builder import GraphBuilder
from zqlib.export.onnx_functions import DOMAIN, OPSET, integer_functions
from zqlib.integer.operators import (
    Argmax,
    Attention,
    Conv1d,
    Conv2d,
    LayerNorm,
    Operator,
    Positions,
    Product,
    Requantize,
    Sigmoid,
    Swish,
)
from zqlib.integer.program import Program
from zqlib.integer.tensor_type import TensorType

__all__ = ["export_integer"]

_TYPES = {
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int32: TensorProto.INT32,
}


def export_integer(program: Program, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Write a program as an ONNX model.

    Args:
        program: any program; its dynamic axes are `batch` and `frames`.
        metadata: text by key, for the model's `metadata_props`.

    Returns:
        The checked model, with the inputs and outputs named above.
    """
    graph = _Graph(program)
    for operator in program.operators:
        graph.write(operator)
    graph.result(graph.values[program.tokens], "tokens")
    graph.result(graph.values[program.logits], "logits")
    graph.result(graph.lengths[program.logits], "output_length")
    source, classes = program.tensors[program.input], program.tensors[program.logits].channels
    return graph.model(
        "integer_program",
        [
            ("features", _TYPES[source.dtype], ("batch", source.channels, "frames")),
            ("length", TensorProto.INT64, ("batch",)),
        ],
        [
            ("tokens", TensorProto.INT32, ("batch", "output_frames")),
            ("logits", TensorProto.INT32, ("batch", classes, "output_frames")),
            ("output_length", TensorProto.INT64, ("batch",)),
        ],
        OPSET,
        integer_functions(),
        metadata,
    )


class _Graph(GraphBuilder):
    """Appends the operators of a program.

    Attributes:
        values: what a tensor of the program is called here; (batch, channels, frames), but for the
            tokens, (batch, frames).
        lengths: the valid frames of each, int64 (batch,); absent where all frames are valid.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(("features", "length", "tokens", "logits", "output_length"))
        self.values = {program.input: "features"}
        self.lengths = {program.input: "length"}
        self._types = program.tensors
        self._masked: dict[str, str] = {}
        self._valid: dict[str, str] = {}

    def write(self, operator: Operator) -> None:
        """Append one operator."""
        source, target = operator.reads[0], operator.output
        if source in self.lengths and not isinstance(operator, Positions):
            self.lengths[target] = self.lengths[source]
        match operator:
            case Conv1d():
                result = self._conv1d(operator)
            case Conv2d():
                result = self._conv2d(operator)
            case Requantize():
                terms = [
                    self._call("Requantize", term.input, term.m[:, None], term.e[:, None])
                    for term in operator.terms
                ]
                total = terms[0]
                for term in terms[1:]:
                    total = self.add("Add", total, term)
                result = self._clamp(total, target)
            case LayerNorm(constants=c):
                channels = torch.tensor(self._types[source].channels)
                columns = (c.m[:, None], c.e[:, None], c.offset[:, None], torch.tensor(c.eps))
                result = self._clamp(self._call("LayerNorm", source, channels, *columns), target)
            case Sigmoid():
                high = torch.tensor(operator.high)
                value = self._call("Sigmoid", source, *operator.exponent, high)
                result = self._clamp(value, target)
            case Swish():
                zero = torch.tensor(operator.zero)
                value = self._call("Swish", source, *operator.exponent, *operator.gain, zero)
                result = self._clamp(value, target)
            case Product():
                wide = [self.cast(self.values[name], TensorProto.INT32) for name in operator.reads]
                result = self.add("Mul", *wide, output=target)
            case Positions():
                result = positions(self, operator, self.values[source])
            case Attention():
                reads = [self.values[name] for name in operator.reads]
                result = attention(self, operator, reads, self._valid_frames(source))
            case Argmax():
                index = self.add("ArgMax", self.values[source], axis=1, keepdims=0)
                result = self.cast(index, TensorProto.INT32, target)
        self.values[target] = result

    def _conv1d(self, conv: Conv1d) -> str:
        span = conv.dilation * (conv.weight.shape[2] - 1)
        accumulator = self.add(
            "ConvInteger",
            self._mask(conv.input),
            self.constant(conv.weight, f"{conv.name}.weight"),
            output=conv.output,
            strides=[conv.stride],
            dilations=[conv.dilation],
            pads=[conv.padding] * 2,
            group=conv.groups,
        )
        self._set_length(conv, span)
        if conv.bias is None:
            return accumulator
        bias = self.constant(conv.bias[:, None], f"{conv.name}.bias")
        return self.add("Add", accumulator, bias, output=conv.output)

    def _conv2d(self, conv: Conv2d) -> str:
        out, planes, taps, _ = conv.weight.shape
        accumulator = self.add(
            "ConvInteger",
            self.reshape(self._mask(conv.input), 0, planes, conv.bands, -1),
            self.constant(conv.weight.transpose(2, 3), f"{conv.name}.weight"),
            strides=[conv.stride] * 2,
            pads=[conv.padding] * 4,
        )
        self._set_length(conv, taps - 1)
        bias = self.constant(conv.bias[:, None, None], f"{conv.name}.bias")
        biased = self.add("Add", accumulator, bias)
        return self.reshape(biased, 0, out * conv.reduced(conv.bands), -1, output=conv.output)

    def _set_length(self, conv: Conv1d | Conv2d, span: int) -> None:
        """Valid frames of the output: (length + 2 * padding - span - 1) // stride + 1."""
        change = 2 * conv.padding - span - 1
        if conv.input in self.lengths and (conv.stride, change) != (1, -1):
            last = self.add("Add", self.lengths[conv.input], self.constant(change, "change"))
            strides = self.add("Div", last, self.constant(conv.stride, "stride"))
            self.lengths[conv.output] = self.add("Add", strides, self.constant(1, "one"))

    def _mask(self, name: str) -> str:
        """The tensor with 0 beyond each length."""
        if name not in self.lengths:
            return self.values[name]
        if name not in self._masked:
            zero = self.constant(torch.zeros((), dtype=self._types[name].dtype), "zero")
            self._masked[name] = self.add(
                "Where", self._valid_frames(name), self.values[name], zero, output=f"{name}.masked"
            )
        return self._masked[name]

    def _valid_frames(self, name: str) -> str:
        """(batch, 1, frames) bool, the same for all tensors of the same lengths."""
        lengths = self.lengths[name]
        if lengths not in self._valid:
            self._valid[lengths] = valid_frames(self, self.frames(self.values[name]), lengths)
        return self._valid[lengths]

    def _call(self, function: str, source: str, *constants: Tensor) -> str:
        """A function of `zqlib.export.onnx_functions`, of one tensor and constants."""
        stored = [self.constant(value, f"{function.lower()}.constant") for value in constants]
        return self.add(function, self.values[source], *stored, domain=DOMAIN)

    def _clamp(self, value: str, name: str) -> str:
        """An int64 value as the program's tensor of that name."""
        kind: TensorType = self._types[name]
        low, high = self.constant(kind.low, "low"), self.constant(kind.high, "high")
        return self.cast(self.add("Clip", value, low, high), _TYPES[kind.dtype], name)
