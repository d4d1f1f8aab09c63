"""A calibrated model as an ONNX model with QuantizeLinear and DequantizeLinear (Q/DQ).

The weights are those of the integer program: int8, symmetric, one scale per output channel. The
features and the tensors that a convolution or a linear layer reads are rounded on the program's
scales. What is rounded there only for other operators (the stream of a Conformer, attention, Swish,
Jasper's partial sums) stays in float.

Two flavours, by the scheme's `unsigned_relu`:

* `u8s8`, for ONNX Runtime and OpenVINO: activations are uint8, for the fast u8 x s8 products. Those
  of a ReLU have 256 levels from zero point 0; signed ones have the levels of int8, stored with 128
  added (the zero point), since a convolution must read and write one type. What a convolution
  writes is rounded as well (see `zqlib.quantization.rounding`), or its float convolution would be
  taken. A summand has the step of its sum there, as in the program, if its range fits into 8 bits
  then. What a depthwise convolution of a Conformer hands to a Swish has 16 bits in the program, and
  8 cost a point of WER (the book's ablation `gate-8`): these convolutions are `ConvInteger`, whose
  int32 sums are scaled to floats. Masks are on integers, and biases are int32, of the scale that
  ONNX Runtime asks for.
* `s8s8`, for TensorRT's explicit quantization, by the rules in `zqlib.export.tensorrt_rules`: int8
  throughout, zero point 0, float biases. Nothing but Q and DQ reads int8, so masks and changes of
  layout are on floats between two pairs, which round the same twice. Convolutions have two axes,
  one of size 1: the parser would put a reshape of its own between a weight's DQ and a convolution
  of one axis. In a residual sum all branches but the last are rounded, so that the sum runs in
  integers in that one's kernel. ONNX Runtime runs this flavour too, but takes the float kernel of
  every convolution whose result is not rounded at once.
"""

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from zqlib.errors import InputError
from zqlib.export.onnx_float import FloatWriter, Layout
from zqlib.quantization.calibrate import activation_levels, zero_points
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import quantize_weight
from zqlib.quantization.nodes import Activation, FloatConv, FloatConv2d
from zqlib.quantization.rounding import round_convolutions
from zqlib.quantization.scheme import QuantScheme

__all__ = ["export_qdq"]


def export_qdq(
    graph: FloatGraph,
    scales: Mapping[str, float],
    scheme: QuantScheme,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Write a calibrated model with Q/DQ.

    Args:
        graph: from `zqlib.quantization.fold`.
        scales: from `calibrate_rounded`. `lower` takes the same for `graph`.
        scheme: that of the calibration; its `unsigned_relu` chooses the flavour.
        metadata: text by key, for the model's `metadata_props`.

    Returns:
        The checked model, with inputs and outputs as in `zqlib.export.onnx_float`.

    Raises:
        InputError: activations of another width than 8 bits, a zero point that s8s8 cannot have,
            or a scale is missing.
    """
    if scheme.offset_swish and not scheme.unsigned_relu:
        raise InputError("s8s8 has no zero points; set offset_swish to false as well.")
    if scheme.activation_bits != 8:
        raise InputError(
            f"Q/DQ holds activations of 8 bits, the scheme has {scheme.activation_bits}; "
            "use w<bits>a8, or export an integer program."
        )
    return _QdqWriter(round_convolutions(graph), scales, scheme).write(metadata)


class _QdqWriter(FloatWriter):
    def __init__(self, graph: FloatGraph, scales: Mapping[str, float], scheme: QuantScheme) -> None:
        super().__init__(graph)
        self.scales, self.scheme = dict(scales), scheme
        self.levels = activation_levels(graph, scheme)
        self.points, self._wide = self._rounded()
        if missing := sorted(self.points - scales.keys()):
            raise InputError(
                f"The tensor {missing[0]!r} has no scale; take those of `calibrate_rounded`."
            )
        self._zeros = zero_points(graph, scales, scheme)
        if scheme.unsigned_relu:
            self._round_summands_as_their_sum()
        self._steps: dict[str, tuple[str, str]] = {}
        self._integers: dict[tuple[str, Layout, bool], str] = {}
        if not scheme.unsigned_relu:
            self.convolved = "rows"

    def _rounded(self) -> tuple[set[str], set[str]]:
        """Names of the tensors to round, and of the convolutions' sums that stay integers.

        8 bits are too few for those; s8s8 (TensorRT) hands them on as floats.
        """
        convolutions = [o for o in self.graph.operators if isinstance(o, FloatConv | FloatConv2d)]
        activations = [o for o in self.graph.operators if isinstance(o, Activation)]
        outputs = {o.output for o in convolutions if o.name not in self.linear}
        alone = [o for o in activations if len(o.inputs) == 1 and o.inputs[0] in outputs]
        written = {o.output for o in alone if o.bits is None}
        wide = {o.inputs[0] for o in alone if o.bits is not None}
        if not self.scheme.unsigned_relu:
            branches = [[i for i in o.inputs if i in written] for o in activations]
            written, wide = {name for names in branches for name in names[:-1]}, set()
        return (written | {o.input for o in convolutions}) & self.levels.keys(), wide

    def _round_summands_as_their_sum(self) -> None:
        """What convolutions write only for a sum gets the sum's step if its own is finer."""
        read = {o.input for o in self.graph.operators if isinstance(o, FloatConv | FloatConv2d)}
        for operator in self.graph.operators:
            if isinstance(operator, Activation) and len(operator.inputs) > 1:
                summands = (self.points - read).intersection(operator.inputs)
                step = self.scales[operator.output]
                self.scales |= {name: max(self.scales[name], step) for name in summands}

    def store(self, name: str, layout: Layout, value: str, relu: bool = False) -> None:
        """Quantize the tensor, if it is one of those."""
        if name not in self.points:
            return super().store(name, layout, value, relu)
        if relu:
            value = self.add("Relu", value)
        self.layouts[name] = layout
        self._integers[name, layout, False] = self._quantize(name, value)

    def read(self, name: str, layout: Layout) -> str:
        """A tensor in float, dequantized if need be."""
        if name in self.points and (name, layout) not in self.values:
            if self.scheme.unsigned_relu:
                return self._dequantize(name, self._integer(name, layout, masked=False))
            source = self.layouts[name]
            value = self._dequantize(name, self._integers[name, source, False])
            return self.arrange(name, value, source, layout)
        return super().read(name, layout)

    def operand(self, conv: FloatConv | FloatConv2d, layout: Layout, masked: bool) -> str:
        """The dequantized input; every layer has a DequantizeLinear of its own."""
        return self._dequantize(conv.input, self._integer(conv.input, layout, masked))

    def parameters(self, conv: FloatConv | FloatConv2d) -> tuple[str, str]:
        """The dequantized weight and the bias."""
        stored, bias_q, scale = self._quantized(conv)
        weight_scale = self.constant(scale.float(), f"{conv.name}.weight.scale")
        axis = 1 if conv.name in self.linear else 0
        weight = self.add("DequantizeLinear", stored, weight_scale, axis=axis)
        if conv.bias is None or bias_q is None:
            return weight, ""
        if conv.name in self.linear or not self.scheme.unsigned_relu:
            return weight, self.constant(conv.bias, f"{conv.name}.bias")
        # a product that runtimes fold when they load the model, and that need not be stored
        bias_scale = self.add("Mul", weight_scale, self._step(conv.input)[0])
        stored = self.constant(bias_q, f"{conv.name}.bias")
        return weight, self.add("DequantizeLinear", stored, bias_scale, axis=0)

    def convolution(
        self, conv: FloatConv | FloatConv2d, layout: Layout, masked: bool, **attributes: Any
    ) -> str:
        """A convolution between dequantized tensors, or one whose sums are kept and scaled."""
        if conv.output not in self._wide:
            return super().convolution(conv, layout, masked, **attributes)
        data, (_, zero) = self._integer(conv.input, layout, masked), self._step(conv.input)
        stored, bias_q, scale = self._quantized(conv)
        sums = self.add("ConvInteger", data, stored, zero, output=conv.name, **attributes)
        channels = (-1, *[1] * (conv.weight.dim() - 2))
        if bias_q is not None:
            bias = self.constant(bias_q.view(channels), f"{conv.name}.bias")
            sums = self.add("Add", sums, bias)
        step = (self.scales[conv.input] * scale).float().view(channels)
        real = self.cast(sums, TensorProto.FLOAT)
        return self.add("Mul", real, self.constant(step, f"{conv.name}.scale"))

    def _quantized(self, conv: FloatConv | FloatConv2d) -> tuple[str, Tensor | None, Tensor]:
        """The stored weight int8, the bias int32 and the scale of each output channel."""
        quantized, bias_q, scale = quantize_weight(conv, self.scales[conv.input], self.scheme)
        arranged = self.arranged(conv, quantized)
        return self.constant(arranged, f"{conv.name}.weight"), bias_q, scale

    def _integer(self, name: str, layout: Layout, masked: bool) -> str:
        """The quantized tensor in a layout, with zeros beyond each length if `masked`."""
        key = (name, layout, masked)
        if key not in self._integers:
            if not self.scheme.unsigned_relu:
                value = self.read(name, layout)
                if masked:
                    zero = self.constant(torch.zeros(()), "zero")
                    value = self.mask(name, layout, value, zero)
                value = self._quantize(name, value)
            elif masked:
                value = self._integer(name, layout, masked=False)
                value = self.mask(name, layout, value, self._step(name)[1])
            else:
                source = self.layouts[name]
                value = self.arrange(name, self._integers[name, source, False], source, layout)
            self._integers[key] = value
        return self._integers[key]

    def _quantize(self, name: str, value: str) -> str:
        return self.add("QuantizeLinear", value, *self._step(name), output=f"{name}.integer")

    def _dequantize(self, name: str, value: str) -> str:
        return self.add("DequantizeLinear", value, *self._step(name), output=f"{name}.real")

    def _step(self, name: str) -> tuple[str, str]:
        """Scale and zero point of a tensor."""
        if name not in self._steps:
            signed = self.levels[name][0] < 0
            kind = torch.uint8 if self.scheme.unsigned_relu else torch.int8
            zero = 128 if signed and kind == torch.uint8 else self._zeros.get(name, 0)
            scale = torch.tensor(self.scales[name], dtype=torch.float32)
            self._steps[name] = (
                self.constant(scale, f"{name}.scale"),
                self.constant(torch.tensor(zero, dtype=kind), f"{name}.zero"),
            )
        return self._steps[name]
