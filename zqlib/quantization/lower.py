"""Lowers a calibrated float graph to an integer program: the only bridge between the two.

All real scales live and die here. A weight of channel c is w_q * s_w[c], an accumulator is
acc * s_x * s_w[c], and an activation of scale s_y is reached by M = s_x * s_w[c] / s_y, stored as
the dyadic number m * 2^-e (see `zqlib.integer.arithmetic`).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zqlib.integer.arithmetic import dyadic
from zqlib.integer.nonlinear import LayerNormConstants, exponent_multiplier
from zqlib.integer.operators import Attention, Conv2d, LayerNorm, Positions, Product, Sigmoid, Swish
from zqlib.integer.packing import largest_multiplier
from zqlib.integer.program import (
    ACCUMULATOR,
    Argmax,
    Conv1d,
    Operator,
    Program,
    Requantize,
    TensorType,
    Term,
)
from zqlib.models.conformer import relative_positions
from zqlib.quantization.calibrate import activation_levels, zero_points
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import (
    Accumulating,
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
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import layer_bits

__all__ = ["logits_step", "lower", "quantize_weight"]

_MOST_FRAMES = 2500  # a table of 100 s at 40 ms a frame
_SCORE_STEP = 2.0**-12  # of the scores before a softmax: 0.02 % of a weight


def quantize_weight(
    conv: FloatConv | FloatConv2d, input_scale: float, scheme: QuantScheme
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Symmetric per-output-channel quantization to the nearest level.

    Args:
        conv: weight, bias, and what grid it is on if `quantize_weights` put it on one.
        input_scale: real value of one step of the layer's input.
        scheme: bits of the weight, unless the layer has its own; whether both ends are used.

    Returns:
        Weight int8, bias int32 at scale input_scale * scale, and the scale (out,) float64. Where a
        channel's weights are tiny beside its bias (a dead channel after folding), the scale is
        widened until the bias fits 30 bits, and sub-scales are 1: its weights then count for
        nothing, as in float. A channel of zeros takes the coarsest scale of the others, which then
        stays the coarsest.
    """
    limit = 2 ** (layer_bits(conv, scheme) - 1) - 1
    plain = conv.weight.flatten(1).abs().amax(1).double() / limit
    scale = plain if conv.weight_scale is None else conv.weight_scale
    if conv.bias is not None:
        least = conv.bias.abs().double() / (input_scale * 2**30)
        scale = torch.where(least > scale, torch.maximum(least, plain), scale)
    scale = scale.masked_fill(scale == 0, float(scale.max()) or 1.0)
    if conv.group_size is not None:
        limit *= largest_multiplier(layer_bits(conv, scheme))
    high = limit if scheme.both_ends else limit - 1
    column = scale.view(-1, *[1] * (conv.weight.ndim - 1))
    weight_q = torch.round(conv.weight.double() / column).clamp(-limit, high)
    bias_q = None
    if conv.bias is not None:
        bias_q = torch.round(conv.bias.double() / (input_scale * scale)).to(torch.int32)
    return weight_q.to(torch.int8), bias_q, scale


def logits_step(graph: FloatGraph, scales: Mapping[str, float], scheme: QuantScheme) -> float:
    """Real value of one step of the program's logits: the coarsest of the decoder's accumulators.

    Args:
        graph, scales, scheme: what `lower` makes the program of.
    """
    decoder = graph.operators[-1]
    assert isinstance(decoder, FloatConv) and decoder.output == graph.logits
    step = scales[decoder.input]
    _, _, scale = quantize_weight(decoder, step, scheme)
    return step * float(scale.max())


def lower(graph: FloatGraph, scales: Mapping[str, float], scheme: QuantScheme) -> Program:
    """Build the integer program of a graph.

    Args:
        graph: the folded model.
        scales: of the features and of every activation, from `calibrate`.
        scheme: bits.

    Raises:
        LoweringError: a layer's accumulator could overflow int32, or a scale is out of reach.
    """
    levels, zeros = activation_levels(graph, scheme), zero_points(graph, scales, scheme)
    input_low, input_high = levels[graph.input]
    types = {graph.input: TensorType(graph.channels, torch.int8, input_low, input_high)}
    accumulator_scales: dict[str, Tensor] = {}
    operators: list[Operator] = []
    lowered: Operator
    raised = {  # accumulators of tensors whose zero is not 0, to the real value of that
        operator.inputs[0]: zeros[operator.output] * scales[operator.output]
        for operator in graph.operators
        if isinstance(operator, Activation) and operator.output in zeros
    }
    for operator in graph.operators:
        if not isinstance(operator, Accumulating):
            types[operator.output] = _quantized_type(operator, types, levels[operator.output])
        match operator:
            case FloatConv() | FloatConv2d():
                ends = scales[operator.input], zeros.get(operator.input, 0)
                if zero := raised.get(operator.output):
                    operator = _plus(operator, zero)
                lowered, scale = _lower_conv(operator, *ends, types, scheme)
                accumulator_scales[operator.output] = scale
            case Activation():
                target = scales[operator.output]
                terms = []
                for name in operator.inputs:
                    source = accumulator_scales.get(name)
                    if source is None:  # a summand that is quantized already
                        source = _uniform(types[name].channels, scales[name])
                    terms.append(Term(name, *dyadic(source / target)))
                lowered = Requantize(operator.name, tuple(terms), operator.output)
            case FloatLayerNorm():
                pair = scales[operator.input], scales[operator.output]
                constants = LayerNormConstants.of(
                    operator.gamma, operator.beta, operator.eps, *pair
                )
                lowered = LayerNorm(operator.name, operator.input, operator.output, constants)
            case FloatFunction():
                zero = zeros.get(operator.output, 0)
                lowered = _lower_function(operator, scales, levels[operator.output][1], zero)
            case FloatProduct():
                step = scales[operator.reads[0]] * scales[operator.reads[1]]
                channels = types[operator.reads[0]].channels
                accumulator_scales[operator.output] = _uniform(channels, step)
                lowered = Product(operator.name, operator.reads, operator.output)
            case FloatPositions():
                table = relative_positions(_MOST_FRAMES, operator.channels)[:_MOST_FRAMES].flip(0)
                quantized = torch.round(table / scales[operator.output]).to(torch.int8)
                lowered = Positions(operator.name, operator.input, operator.output, quantized)
            case FloatAttention():
                lowered = _lower_attention(operator, scales)
                channels = types[operator.reads[2]].channels
                step = scales[operator.reads[2]] / 255
                accumulator_scales[operator.output] = _uniform(channels, step)
        if operator.output in accumulator_scales:
            channels = accumulator_scales[operator.output].shape[0]
            types[operator.output] = ACCUMULATOR(channels)
        operators.append(lowered)
    # Classes differ in scale: bring them to the coarsest before they are compared.
    scale = accumulator_scales[graph.logits]
    types["logits.common"] = types[graph.logits]
    types["tokens"] = TensorType(1, torch.int32, 0, types[graph.logits].channels - 1)
    term = Term(graph.logits, *dyadic(scale / scale.max()))
    operators.append(Requantize("logits.common", (term,), "logits.common"))
    operators.append(Argmax("tokens", "logits.common", "tokens"))
    return Program(types, tuple(operators), graph.input, "logits.common", "tokens")


def _quantized_type(
    operator: FloatOperator, types: Mapping[str, TensorType], levels: tuple[int, int]
) -> TensorType:
    low, high = levels
    dtype = torch.int32 if high > 255 else torch.uint8 if high > 127 else torch.int8
    channels = types[operator.reads[0]].channels
    if isinstance(operator, FloatPositions):
        channels = operator.channels
    return TensorType(channels, dtype, low, high)


def _lower_conv(
    conv: FloatConv | FloatConv2d,
    input_scale: float,
    input_zero: int,
    types: Mapping[str, TensorType],
    scheme: QuantScheme,
) -> tuple[Conv1d | Conv2d, Tensor]:
    """The integer convolution, and the scale of its accumulator for every channel.

    What an input adds whose zero is not 0 is the same at every frame, unless the convolution pads:
    it is taken off the bias.
    """
    bits = layer_bits(conv, scheme)
    weight, bias, scale = quantize_weight(conv, input_scale, scheme)
    if input_zero:
        assert conv.padding == 0
        excess = (input_zero * weight.long().flatten(1).sum(1)).to(torch.int32)
        bias = -excess if bias is None else bias - excess
    if isinstance(conv, FloatConv):
        lowered = Conv1d(
            conv.name, conv.input, conv.output, weight, bias, bits,
            conv.stride, conv.padding, conv.dilation, conv.groups, conv.group_size,
        )  # fmt: skip
        return lowered, input_scale * scale
    assert bias is not None
    bands = types[conv.input].channels // conv.weight.shape[1]
    planar = Conv2d(
        conv.name, conv.input, conv.output, weight, bias, bits, conv.stride, conv.padding, bands,
        conv.group_size,
    )  # fmt: skip
    return planar, (input_scale * scale).repeat_interleave(planar.reduced(bands))


def _plus(conv: FloatConv | FloatConv2d, value: float) -> FloatConv | FloatConv2d:
    """A convolution that adds a value to all that it makes."""
    bias = torch.zeros(conv.weight.shape[0]) if conv.bias is None else conv.bias
    return replace(conv, bias=bias + value)


def _lower_function(
    function: FloatFunction, scales: Mapping[str, float], high: int, zero: int
) -> Sigmoid | Swish:
    source, target = scales[function.input], scales[function.output]
    exponent = exponent_multiplier(source)
    ends = (function.name, function.input, function.output)
    if function.function == "sigmoid":
        return Sigmoid(*ends, exponent, high)
    return Swish(*ends, exponent, _one(source / 2**15 / target), zero)


def _lower_attention(attention: FloatAttention, scales: Mapping[str, float]) -> Attention:
    query, key, _, position = (scales[name] for name in attention.reads)
    size = attention.content_bias.shape[0] // attention.heads

    def steps(scale: float) -> tuple[Tensor, Tensor]:
        return _one(scale / math.sqrt(size) / _SCORE_STEP)

    def biased(bias: Tensor) -> Tensor:
        return torch.round(bias.double() / query).to(torch.int32)

    return Attention(
        attention.name,
        attention.reads,
        attention.output,
        attention.heads,
        biased(attention.content_bias),
        biased(attention.distance_bias),
        steps(query * key),
        steps(query * position),
        exponent_multiplier(_SCORE_STEP),
    )


def _one(multiplier: float) -> tuple[Tensor, Tensor]:
    """The dyadic number of one multiplier for all channels."""
    return dyadic(torch.tensor([multiplier], dtype=torch.float64))


def _uniform(channels: int, scale: float) -> Tensor:
    """One scale for all channels, float64."""
    return torch.full((channels,), scale, dtype=torch.float64)
