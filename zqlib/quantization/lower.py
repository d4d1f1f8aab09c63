"""Lowers a calibrated float graph to an integer program: the only bridge between the two.

All real scales live and die here. A weight of channel c is w_q * s_w[c], an accumulator is
acc * s_x * s_w[c], and an activation of scale s_y is reached by M = s_x * s_w[c] / s_y, stored as
the dyadic number m * 2^-e (see `zqlib.integer.arithmetic`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from zqlib.integer.arithmetic import dyadic
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
from zqlib.quantization.calibrate import activation_levels
from zqlib.quantization.graph import Activation, FloatConv, FloatGraph
from zqlib.quantization.scheme import QuantScheme

__all__ = ["lower", "quantize_weight"]


def quantize_weight(
    weight: Tensor, bias: Tensor | None, input_scale: float, bits: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Symmetric per-output-channel quantization, both ends of the range used.

    Args:
        weight: (out, in / groups, taps) float32.
        bias: (out,) float32 or None.
        input_scale: real value of one step of the layer's input.
        bits: of the weight.

    Returns:
        Weight int8, bias int32 at scale input_scale * scale, and the scale (out,) float64. Where a
        channel's weights are tiny beside its bias (a dead channel after folding), the scale is
        widened until the bias fits 30 bits: its weights then count for nothing, as in float. A
        channel of zeros takes the coarsest scale of the others, which then stays the coarsest.
    """
    limit = 2 ** (bits - 1) - 1
    scale = weight.abs().amax((1, 2)).double() / limit
    if bias is not None:
        scale = torch.maximum(scale, bias.abs().double() / (input_scale * 2**30))
    scale = scale.masked_fill(scale == 0, float(scale.max()) or 1.0)
    weight_q = torch.round(weight.double() / scale[:, None, None]).clamp(-limit, limit)
    bias_q = None
    if bias is not None:
        bias_q = torch.round(bias.double() / (input_scale * scale)).to(torch.int32)
    return weight_q.to(torch.int8), bias_q, scale


def lower(graph: FloatGraph, scales: Mapping[str, float], scheme: QuantScheme) -> Program:
    """Build the integer program of a graph.

    Args:
        graph: the folded model.
        scales: of the features and of every activation, from `calibrate`.
        scheme: bits.

    Raises:
        LoweringError: a layer's accumulator could overflow int32, or a scale is out of reach.
    """
    levels = activation_levels(graph, scheme)
    input_low, input_high = levels[graph.input]
    types = {graph.input: TensorType(graph.channels, torch.int8, input_low, input_high)}
    accumulator_scales: dict[str, Tensor] = {}
    operators: list[Operator] = []
    for operator in graph.operators:
        if isinstance(operator, FloatConv):
            input_scale = scales[operator.input]
            weight, bias, scale = quantize_weight(
                operator.weight, operator.bias, input_scale, scheme.weight_bits
            )
            accumulator_scales[operator.output] = input_scale * scale
            types[operator.output] = ACCUMULATOR(weight.shape[0])
            operators.append(
                Conv1d(
                    operator.name,
                    operator.input,
                    operator.output,
                    weight,
                    bias,
                    scheme.weight_bits,
                    operator.stride,
                    operator.padding,
                    operator.dilation,
                    operator.groups,
                )  # fmt: skip
            )
        else:
            types[operator.output] = _activation_type(operator, types, levels)
            target = scales[operator.output]
            terms = tuple(
                Term(name, *dyadic(accumulator_scales[name] / target)) for name in operator.inputs
            )
            operators.append(Requantize(operator.name, terms, operator.output))
    # Classes differ in scale: bring them to the coarsest before they are compared.
    scale = accumulator_scales[graph.logits]
    types["logits.common"] = types[graph.logits]
    types["tokens"] = TensorType(1, torch.int32, 0, types[graph.logits].channels - 1)
    term = Term(graph.logits, *dyadic(scale / scale.max()))
    operators.append(Requantize("logits.common", (term,), "logits.common"))
    operators.append(Argmax("tokens", "logits.common", "tokens"))
    return Program(types, tuple(operators), graph.input, "logits.common", "tokens")


def _activation_type(
    activation: Activation,
    types: Mapping[str, TensorType],
    levels: Mapping[str, tuple[int, int]],
) -> TensorType:
    low, high = levels[activation.output]
    dtype = torch.uint8 if high > 127 else torch.int8
    return TensorType(types[activation.inputs[0]].channels, dtype, low, high)
