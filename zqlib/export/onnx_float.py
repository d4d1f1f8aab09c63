"""A folded model as an ONNX model in float32: the baseline, and the frame for Q/DQ.

    audio_signal (batch, mels, frames) float32, length (batch,) int64
    -> logprobs (batch, frames', classes) float32, output_length (batch,) int64

Names and layout are those of NeMo's own export, which onnx-asr and sherpa-onnx load. Utterances are
masked by length as in NeMo, so that a padded batch gives what each utterance gives alone.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from zqlib.export.onnx_attention import relative_shift, valid_frames
from zqlib.export.onnx_builder import GraphBuilder
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import (
    Activation,
    FloatAttention,
    FloatConv,
    FloatConv2d,
    FloatFunction,
    FloatLayerNorm,
    FloatOperator,
    FloatPositions,
    FloatProduct,
)
from zqlib.quantization.rounding import linear_layers

__all__ = ["OPSET", "FloatWriter", "Layout", "export_float"]

OPSET = 17  # the first one with LayerNormalization; TensorRT, OpenVINO and ONNX Runtime read it

Layout = Literal["channels", "rows", "planes", "frames"]
"""Of a tensor inside: (batch, channels, frames) or (batch, channels, 1, frames) at convolutions,
(batch, planes, bands, frames) at those over bands, (batch, frames, channels) at the layers of a
Conformer."""


def export_float(graph: FloatGraph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Write a folded model in float32.

    Args:
        graph: from `zqlib.quantization.fold`.
        metadata: text by key, for the model's `metadata_props`.
    """
    return FloatWriter(graph).write(metadata)


class FloatWriter(GraphBuilder):
    """Appends the operators of a float graph.

    Four methods decide what is quantized, and are there to be replaced: `store`, `operand`,
    `parameters` and `convolution`.

    Attributes:
        graph: the graph.
        linear: names of its linear layers.
        convolved: the layout in which convolutions over frames are written.
        layouts: in which layout each tensor was computed.
    """

    convolved: Layout = "channels"

    def __init__(self, graph: FloatGraph) -> None:
        super().__init__(("audio_signal", "length", "logprobs", "output_length"))
        self.graph = graph
        self.linear = linear_layers(graph)
        self.layouts: dict[str, Layout] = {}
        self.values: dict[tuple[str, Layout], str] = {}
        self._planes = {graph.input: (1, graph.channels)}  # and the bands of each
        self._lengths = {graph.input: "length"}
        self._frames = {
            "length": self.frames("audio_signal")
        }  # how many, by what names the lengths
        self._valid: dict[tuple[str, int], str] = {}

    def write(self, metadata: Mapping[str, str] | None) -> onnx.ModelProto:
        """Append everything; the checked model."""
        graph = self.graph
        self.store(graph.input, "channels", "audio_signal")
        for operator in graph.operators:
            self._lengths[operator.output] = self._lengths[operator.reads[0]]
            self._append(operator)
        logits = self.read(graph.logits, "frames")
        self.result(self.add("LogSoftmax", logits, axis=-1), "logprobs")
        self.result(self._lengths[graph.logits], "output_length")
        decoder = graph.operators[-1]
        assert isinstance(decoder, FloatConv)
        return self.model(
            "ctc_model",
            [
                ("audio_signal", TensorProto.FLOAT, ("batch", graph.channels, "frames")),
                ("length", TensorProto.INT64, ("batch",)),
            ],
            [
                ("logprobs", TensorProto.FLOAT, ("batch", "output_frames", len(decoder.weight))),
                ("output_length", TensorProto.INT64, ("batch",)),
            ],
            OPSET,
            metadata=metadata,
        )

    def store(self, name: str, layout: Layout, value: str, relu: bool = False) -> None:
        """Keep a tensor of the graph that has been computed, but for its ReLU."""
        self.keep(name, layout, self.add("Relu", value, output=name) if relu else value)

    def operand(self, conv: FloatConv | FloatConv2d, layout: Layout, masked: bool) -> str:
        """What a convolution or linear layer multiplies its weights with."""
        value = self.read(conv.input, layout)
        if not masked:
            return value
        return self.mask(conv.input, layout, value, self.constant(torch.zeros(()), "zero"))

    def parameters(self, conv: FloatConv | FloatConv2d) -> tuple[str, str]:
        """Weight and bias; no bias is ""."""
        weight = self.constant(self.arranged(conv, conv.weight), f"{conv.name}.weight")
        bias = "" if conv.bias is None else self.constant(conv.bias, f"{conv.name}.bias")
        return weight, bias

    def convolution(
        self, conv: FloatConv | FloatConv2d, layout: Layout, masked: bool, **attributes: Any
    ) -> str:
        """A convolution's output, given the attributes of the ONNX operator."""
        data, parameters = self.operand(conv, layout, masked), self.parameters(conv)
        return self.add("Conv", data, *filter(None, parameters), output=conv.name, **attributes)

    def arranged(self, conv: FloatConv | FloatConv2d, weight: Tensor) -> Tensor:
        """The weight with the axes that its ONNX operator wants; (in, out) for linear layers."""
        if conv.name in self.linear:
            return weight[:, :, 0].t()
        if isinstance(conv, FloatConv2d):
            return weight.transpose(2, 3)
        return weight[:, :, None] if self.convolved == "rows" else weight

    def keep(self, name: str, layout: Layout, value: str) -> None:
        """Have a float tensor for later operators to read."""
        self.layouts[name] = layout
        self.values[name, layout] = value

    def read(self, name: str, layout: Layout) -> str:
        """A float tensor in a layout."""
        if (name, layout) not in self.values:
            source = self.layouts[name]
            value = self.arrange(name, self.values[name, source], source, layout)
            self.values[name, layout] = value
        return self.values[name, layout]

    def arrange(self, name: str, value: str, source: Layout, target: Layout) -> str:
        """Bring `value`, which is the tensor `name`, from one layout to another."""
        if source == target:
            return value
        planes, bands = self._planes.get(name, (0, 0))
        if source == "planes":
            value = self.reshape(value, 0, planes * bands, -1)
        elif source == "rows":
            value = self.reshape(value, 0, 0, -1)
        if target == "planes":
            return self.reshape(value, 0, planes, bands, -1)
        if "frames" in (source, target):
            value = self.add("Transpose", value, perm=[0, 2, 1])
        return self.reshape(value, 0, 0, 1, -1) if target == "rows" else value

    def mask(self, name: str, layout: Layout, value: str, zero: str) -> str:
        """`value`, which is the tensor `name`, with zero beyond each length."""
        valid = self._valid_frames(name, 4 if layout in ("planes", "rows") else 3)
        return self.add("Where", valid, value, zero, output=f"{name}.masked")

    def _valid_frames(self, name: str, axes: int) -> str:
        """Which frames of a tensor count, bool: (batch, 1, frames) or (batch, 1, 1, frames)."""
        lengths = self._lengths[name]
        if (lengths, axes) not in self._valid:
            valid = valid_frames(self, self._frames[lengths], lengths)
            self._valid[lengths, 3] = valid
            self._valid[lengths, 4] = self.reshape(valid, 0, 1, 1, -1)
        return self._valid[lengths, axes]

    def _append(self, operator: FloatOperator) -> None:
        name = operator.output
        layout = self.layouts[operator.reads[0]]
        match operator:
            case FloatConv() if operator.name in self.linear:
                weight, bias = self.parameters(operator)
                data = self.operand(operator, "frames", False)
                value = self.add("MatMul", data, weight, output=operator.name)
                self.keep(name, "frames", self.add("Add", value, bias) if bias else value)
            case FloatConv() | FloatConv2d():
                layout = "planes" if isinstance(operator, FloatConv2d) else self.convolved
                self.keep(name, layout, self._convolve(operator, layout))
            case Activation():
                total = self.read(operator.inputs[0], layout)
                for other in operator.inputs[1:]:
                    total = self.add("Add", total, self.read(other, layout))
                if layout == "planes":
                    self._planes[name] = self._planes[operator.inputs[0]]
                self.store(name, layout, total, operator.relu)
            case FloatLayerNorm():
                source = self.read(operator.input, "frames")
                gamma = self.constant(operator.gamma, f"{name}.gamma")
                beta = self.constant(operator.beta, f"{name}.beta")
                epsilon = operator.eps
                norm = self.add("LayerNormalization", source, gamma, beta, epsilon=epsilon)
                self.store(name, "frames", norm)
            case FloatFunction():
                source = self.read(operator.input, layout)
                value = self.add("Sigmoid", source)
                if operator.function == "swish":
                    value = self.add("Mul", source, value)
                self.store(name, layout, value)
            case FloatProduct():
                factors = [self.read(factor, layout) for factor in operator.reads]
                self.keep(name, layout, self.add("Mul", *factors))
            case FloatPositions():
                self.store(name, "frames", self._positions(operator))
            case FloatAttention():
                self.keep(name, "frames", self._attention(operator))

    def _convolve(self, conv: FloatConv | FloatConv2d, layout: Layout) -> str:
        taps = conv.weight.shape[2]
        dilation, groups = (conv.dilation, conv.groups) if isinstance(conv, FloatConv) else (1, 1)

        def axes(size: int, nothing: int) -> list[int]:
            """Of each axis that the kernel slides over: the last one is of the frames."""
            first = {"channels": [], "rows": [nothing]}.get(layout, [size])
            return [*first, size]

        value = self.convolution(
            conv,
            layout,
            masked=taps > 1 or conv.padding > 0,
            kernel_shape=axes(taps, 1),
            strides=axes(conv.stride, 1),
            dilations=axes(dilation, 1),
            pads=axes(conv.padding, 0) * 2,
            group=groups,
        )
        change = 2 * conv.padding - dilation * (taps - 1) - 1
        if (conv.stride, change) != (1, -1):
            lengths = self._lengths[conv.input]
            frames = self._frames[lengths]
            self._lengths[conv.output] = self._places(lengths, change, conv.stride)
            self._frames[self._lengths[conv.output]] = self._places(frames, change, conv.stride)
        if layout == "planes":
            bands = (self._planes[conv.input][1] + change) // conv.stride + 1
            self._planes[conv.output] = (conv.weight.shape[0], bands)
        return value

    def _places(self, frames: str, change: int, stride: int) -> str:
        """How many places of a kernel so many frames, (n,), have.

        Counted from the input's, since a Shape of a convolution's quantized output makes OpenVINO
        2026.4 quantize it wrongly where the convolution is one over bands and has a bias.
        """
        last = self.add("Add", frames, self.constant(change, "change"))
        strides = self.add("Div", last, self.constant(stride, "stride"))
        return self.add("Add", strides, self.constant(1, "one"))

    def _positions(self, positions: FloatPositions) -> str:
        """Sines and cosines of all distances, (1, 2 * frames - 1, channels)."""
        one, step = self.constant(1, "one"), self.constant(-1, "step")
        frames = self.reshape(self._frames[self._lengths[positions.input]])
        first, end = self.add("Sub", frames, one), self.add("Neg", frames)
        distance = self.cast(self.add("Range", first, end, step), TensorProto.FLOAT)
        exponent = torch.arange(0, positions.channels, 2) * (
            -math.log(10000.0) / positions.channels
        )
        rate = self.constant(torch.exp(exponent), f"{positions.name}.rate")
        angle = self.add("Mul", self.reshape(distance, -1, 1), rate)
        pair = [
            self.reshape(self.add(kind, angle), 1, -1, len(exponent), 1) for kind in ("Sin", "Cos")
        ]
        return self.reshape(self.add("Concat", *pair, axis=3), 0, 0, -1)

    def _attention(self, attention: FloatAttention) -> str:
        """Softmax attention with relative positions, (batch, frames, channels)."""
        source, heads, name = attention.reads[0], attention.heads, attention.name
        query, key, value, position = (self.read(read, "frames") for read in attention.reads)

        def split(tensor: str, *order: int) -> str:  # from (batch, frames, heads, size)
            return self.add("Transpose", self.reshape(tensor, 0, 0, heads, -1), perm=order)

        def product(bias: Tensor, columns: str) -> str:
            biased = self.add("Add", query, self.constant(bias, f"{name}.bias"))
            return self.add("MatMul", split(biased, 0, 2, 1, 3), split(columns, 0, 2, 3, 1))

        content = product(attention.content_bias, key)
        by_distance = product(attention.distance_bias, position)
        distance = relative_shift(self, by_distance, self._frames[self._lengths[source]])
        size = len(attention.content_bias) // heads
        scale = self.constant(torch.tensor(1 / math.sqrt(size)), f"{name}.scale")
        scores = self.add("Mul", self.add("Add", content, distance), scale)
        lowest = self.constant(torch.tensor(float("-inf")), "lowest")
        keys = self._valid_frames(source, 4)
        attended = self.add("Where", keys, scores, lowest)
        weights = self.add("Softmax", attended, axis=-1)
        context = self.add("MatMul", weights, split(value, 0, 2, 1, 3))
        return self.reshape(self.add("Transpose", context, perm=[0, 2, 1, 3]), 0, 0, -1)
