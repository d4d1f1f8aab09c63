"""Bias correction: takes the mean of the quantization error out of every convolution.

Rounding weights and activations shifts the mean of a convolution's output, and shifts add up from
layer to layer. The float graph and its quantized simulation run side by side over the calibration
features; the difference of their means, per channel, goes into the bias, layer after layer, so
that each correction sees the inputs that the ones before it have left.

Reference: Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.2 (empirical variant).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zqlib.models.jasper import masked_conv
from zqlib.quantization.calibrate import activation_levels
from zqlib.quantization.graph import Activation, FloatConv, FloatGraph
from zqlib.quantization.lower import quantize_weight
from zqlib.quantization.scheme import QuantScheme

__all__ = ["correct_biases"]


@torch.no_grad()
def correct_biases(
    graph: FloatGraph,
    batches: Sequence[tuple[Tensor, Tensor]],
    scales: Mapping[str, float],
    scheme: QuantScheme,
) -> FloatGraph:
    """The same graph with biases that cancel the mean quantization error.

    Convolutions without a bias (depthwise) get none: the pointwise convolution that follows sees
    their error and corrects it.

    Args:
        graph: the folded model.
        batches: calibration features (batch, channels, frames) float32 and lengths (batch,) int64.
        scales: of the features and of every activation, from `calibrate`.
        scheme: bits.
    """
    levels = activation_levels(graph, scheme)

    def rounded(name: str, x: Tensor) -> Tensor:
        low, high = levels[name]
        return torch.round(x / scales[name]).clamp_(low, high).mul_(scales[name])

    exact: dict[str, list[tuple[Tensor, Tensor]]] = {graph.input: []}
    simulated: dict[str, list[tuple[Tensor, Tensor]]] = {graph.input: []}
    for features, lengths in batches:
        x = features.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        exact[graph.input].append((x, lengths))
        simulated[graph.input].append((rounded(graph.input, x), lengths))
    operators: list[FloatConv | Activation] = []
    for index, operator in enumerate(graph.operators):
        if isinstance(operator, FloatConv):
            target = [_convolve(operator, *value) for value in exact[operator.input]]
            weight_q, _, scale = quantize_weight(
                operator.weight, operator.bias, scales[operator.input], scheme.weight_bits
            )
            weight = (weight_q.double() * scale[:, None, None]).float()
            coarse = replace(operator, weight=weight)
            found = [_convolve(coarse, *value) for value in simulated[operator.input]]
            if operator.bias is not None:
                error = _mean(target) - _mean(found)
                operator = replace(operator, bias=operator.bias + error)
                found = [(x + error[:, None, None], lengths) for x, lengths in found]
            exact[operator.output], simulated[operator.output] = target, found
        else:
            exact[operator.output] = _activate(operator, exact)
            simulated[operator.output] = [
                (rounded(operator.output, x), lengths)
                for x, lengths in _activate(operator, simulated)
            ]
        operators.append(operator)
        later = {name for rest in graph.operators[index + 1 :] for name in rest.reads}
        for values in (exact, simulated):
            for name in values.keys() - later:
                del values[name]
    return replace(graph, operators=tuple(operators))


def _convolve(conv: FloatConv, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return masked_conv(
        x, lengths, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def _activate(
    activation: Activation, values: Mapping[str, list[tuple[Tensor, Tensor]]]
) -> list[tuple[Tensor, Tensor]]:
    sums = []
    for branches in zip(*(values[name] for name in activation.inputs), strict=True):
        total = (
            torch.stack([x for x, _ in branches]).sum(0) if len(branches) > 1 else branches[0][0]
        )
        sums.append((total.relu() if activation.relu else total, branches[0][1]))
    return sums


def _mean(values: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean per channel over the valid frames of all batches, (channels,) float32."""
    total = torch.zeros(values[0][0].shape[1], dtype=torch.float64)
    frames = 0
    for x, lengths in values:
        valid = (torch.arange(x.shape[3]) < lengths[:, None])[:, None, None, :]
        total += (x * valid).sum((0, 2, 3)).double()
        frames += int(lengths.sum())
    return (total / frames).float()
