"""Puts weights on the grid that `lower` will find them on, by the methods that a scheme names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from zqlib.quantization.adaround import learned_rounding
from zqlib.quantization.calibrate import activation_levels, zero_points
from zqlib.quantization.gptq import second_order_rounding
from zqlib.quantization.graph import FloatGraph, Value, execute, joined
from zqlib.quantization.mixed_precision import with_layer_bits
from zqlib.quantization.nodes import FloatConv, FloatConv2d, FloatOperator
from zqlib.quantization.patches import patches, weight_rows
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import layer_bits, nearest, on_grid, with_steps

__all__ = ["quantize_weights"]

_MOST_INPUTS = 2048  # rounded together: a Jasper's 896 channels of 29 taps would fill the memory
_APART = 4  # patches of a depthwise convolution: neighbours are the same, moved by one tap
_ROUNDINGS = {"gptq": second_order_rounding, "adaround": learned_rounding}


def quantize_weights(
    graph: FloatGraph,
    scales: Mapping[str, float],
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    progress: bool = False,
) -> FloatGraph:
    """Give every convolution the weights, their scale and the bias that a scheme asks for.

    GPTQ, AdaRound and the correction of biases look at what a convolution is going to read: the
    graph runs once, its activations and the weights of the layers before already rounded.

    Args:
        graph: the folded model.
        scales: of the features and of every activation, from `calibrate`.
        batches: what it was calibrated on: features (batch, channels, frames) float32 and lengths
            (batch,) int64.
        scheme: bits and methods.
        progress: show a bar on standard error.

    Returns:
        The same operators for `lower`, with the scales as they are.

    Raises:
        InputError: the scheme names a layer that the graph has not, or its budget is too small.
    """
    graph = with_layer_bits(graph, batches, scheme, progress)
    if scheme.weight_rounding == "nearest" and not scheme.bias_correction:
        grids = (on_grid(o, scheme) if isinstance(o, FloatConv | FloatConv2d) else o
                 for o in graph.operators)  # fmt: skip
        return replace(graph, operators=tuple(grids))
    levels, zeros = activation_levels(graph, scheme), zero_points(graph, scales, scheme)
    operators: list[FloatOperator] = []

    def rounded(name: str, x: Tensor) -> Tensor:
        (low, high), zero = levels[name], zeros.get(name, 0)
        return ((torch.round(x / scales[name]) + zero).clamp(low, high) - zero) * scales[name]

    def step(operator: FloatOperator, reads: Sequence[Value]) -> Value:
        if isinstance(operator, FloatConv | FloatConv2d):
            operator = _quantized(operator, reads[0], scheme)
        operators.append(operator)
        bar.update()
        x, lengths = execute(operator, reads)
        return (rounded(operator.output, x) if operator.output in levels else x), lengths

    features, lengths = joined(batches)
    with tqdm(total=len(graph.operators), desc="weights", disable=not progress) as bar:
        graph.run(rounded(graph.input, features), lengths, step=step)
    return replace(graph, operators=tuple(operators))


def _quantized(
    conv: FloatConv | FloatConv2d, source: Value, scheme: QuantScheme
) -> FloatConv | FloatConv2d:
    conv, step = with_steps(conv, scheme)
    bits, rows = layer_bits(conv, scheme), weight_rows(conv)
    if scheme.weight_rounding == "nearest":
        grid, mean = nearest(rows, step, bits), _moments(conv, source, second=False)[0]
    else:
        round_part = _ROUNDINGS[scheme.weight_rounding]
        mean, moments = _moments(conv, source)
        if scheme.bias_correction:  # it makes up for what is lost of the mean
            parts = torch.split(mean, _MOST_INPUTS, 1)
            moments = [m - part @ part.mT for m, part in zip(moments, parts, strict=True)]
        split = (torch.split(x, _MOST_INPUTS, 2) for x in (rows, step.expand_as(rows)))
        triples = zip(*split, moments, strict=True)
        grid = torch.cat([round_part(w, m, s, bits) for w, s, m in triples], 2)
    rounded = replace(conv, weight=grid.view(conv.weight.shape).float())
    if not scheme.bias_correction:
        return rounded
    lost = ((rows - grid) @ mean).flatten().float()
    return replace(rounded, bias=lost if conv.bias is None else conv.bias + lost)


def _moments(
    conv: FloatConv | FloatConv2d, source: Value, second: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """The mean of the patches x, and of x x^T, over some of those of a depthwise convolution.

    Returns:
        (groups, inputs, 1) float64; and, if `second`, (groups, inputs, inputs) float64 for each
        part of the inputs.
    """
    x, lengths = source
    places, total, sums = 0, x.new_zeros(()), list[Tensor]()
    for row, length in zip(x[:, :, 0], lengths.tolist(), strict=True):
        columns = patches(conv, row[:, :length])
        if len(columns) > 1:
            columns = columns[:, :, ::_APART]
        places += columns.shape[2]
        total = total + columns.sum(2, keepdim=True).double()
        if second:
            products = [(part @ part.mT).double() for part in torch.split(columns, _MOST_INPUTS, 1)]
            sums = [a + b for a, b in zip(sums, products, strict=True)] if sums else products
    return total / places, [products / places for products in sums]
