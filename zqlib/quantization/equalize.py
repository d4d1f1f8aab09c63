"""Moves factors between the channels of layers so that 8 bits per tensor go further.

A float model has many forms that compute the same: what a channel is multiplied by in one layer,
the layers that read it can divide by again. Rounding tells these forms apart, because all channels
of a tensor share one step. The ranges of the channels are those of the calibration data; single
channels of real speech exceed them, so ranges are drawn together by their square root at most
(cross-layer equalization: Nagel et al. 2019, arXiv 1906.04721; the root: Xiao et al. 2023,
arXiv 2211.10438). Through a ReLU nothing is moved: the channels that a model seldom uses have
ranges that synthetic data underestimates by far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import (
    Activation,
    FloatAttention,
    FloatConv,
    FloatLayerNorm,
    FloatOperator,
    FloatProduct,
)
from zqlib.quantization.scheme import QuantScheme

__all__ = ["equalize"]

_LEAST = 0.01  # of the widest channel: narrower ones may be dead in the calibration data alone


def equalize(
    graph: FloatGraph, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
) -> FloatGraph:
    """The same function in a form that loses less when it is rounded.

    - Channels of a LayerNorm that convolutions read: divided by the root of their relative range.
    - Channels of keys and of positions: divided by the larger of their two relative ranges, which
      the query is multiplied by. Attention sees the same products.
    - Values whose products with a gate a depthwise convolution reads, and these products: divided
      by the root of the geometric mean of their two relative ranges.
    - Outputs of a depthwise convolution that pointwise ones read: each channel with the sign that
      makes it reach further above zero than below, and unsigned from the smallest value on.

    Nothing changes if the scheme does not equalize, and no zero moves if it keeps signs.

    Args:
        graph: the folded model.
        batches: calibration features (batch, channels, frames) float32 and lengths (batch,) int64.
        scheme: `equalize` and `unsigned_relu` matter.
    """
    if not scheme.equalize:
        return graph
    readers = graph.readers()
    norms = [o.output for o in graph.operators if _feeds_convolutions(o, readers)]
    attentions = [o for o in graph.operators if isinstance(o, FloatAttention)]
    gated = _gated_values(graph, readers)
    depthwise = _depthwise_outputs(graph, readers) if scheme.unsigned_relu else []
    attended = (name for attention in attentions for name in attention.reads)
    ends = _Ends([*norms, *attended, *(name for pair in gated for name in pair), *depthwise])
    for features, lengths in batches:
        graph.run(features, lengths, ends.observe)
    divisors = {name: ends.relative(name).sqrt() for name in norms}
    for attention in attentions:
        query, key, _, positions = attention.reads
        shared = torch.maximum(ends.relative(key), ends.relative(positions))
        divisors |= {query: 1 / shared, key: shared, positions: shared}
    for pair in gated:
        value, product = map(ends.relative, pair)
        divisors |= dict.fromkeys(pair, (value * product) ** 0.25)
    for name in depthwise:
        divisors[name] = torch.where(ends.low[name] + ends.high[name] < 0, -1.0, 1.0)
    depths = {
        name: -float(torch.where(divisors[name] < 0, -ends.high[name], ends.low[name]).min())
        for name in depthwise
    }
    return _deepened(_divided(graph, divisors), depths)


class _Ends:
    """Smallest and largest value of every channel of some tensors."""

    def __init__(self, names: Sequence[str]) -> None:
        self.low = dict.fromkeys(names, torch.tensor(float("inf")))
        self.high = dict.fromkeys(names, torch.tensor(float("-inf")))

    def observe(self, name: str, values: Tensor) -> None:
        """Take in values (channels, frames)."""
        if name in self.low:
            low, high = values.aminmax(dim=1)
            self.low[name] = torch.minimum(self.low[name].to(low.device), low)
            self.high[name] = torch.maximum(self.high[name].to(high.device), high)

    def relative(self, name: str) -> Tensor:
        """The largest magnitude of every channel, over that of the tensor; (channels,)."""
        magnitude = torch.maximum(self.high[name], -self.low[name])
        return (magnitude / magnitude.max()).clamp(min=_LEAST)


def _feeds_convolutions(
    operator: FloatOperator, readers: Mapping[str, Sequence[FloatOperator]]
) -> bool:
    """Whether it is a LayerNorm whose channels meet weights of their own next, and nothing else."""
    return isinstance(operator, FloatLayerNorm) and all(
        isinstance(reader, FloatConv) and reader.groups == 1 for reader in readers[operator.output]
    )


def _gated_values(
    graph: FloatGraph, readers: Mapping[str, Sequence[FloatOperator]]
) -> list[tuple[str, str]]:
    """Values that are multiplied by a gate for depthwise convolutions to read, and the products."""
    pairs = []
    for operator in graph.operators:
        if isinstance(operator, FloatProduct):
            value, _ = operator.reads
            [product] = readers[operator.output]
            if readers[value] == [operator] and all(
                isinstance(reader, FloatConv) and reader.groups > 1
                for reader in readers[product.output]
            ):
                pairs.append((value, product.output))
    return pairs


def _depthwise_outputs(
    graph: FloatGraph, readers: Mapping[str, Sequence[FloatOperator]]
) -> list[str]:
    """Rounded outputs of depthwise convolutions that go into unpadded convolutions only."""
    accumulators = {
        operator.output
        for operator in graph.operators
        if isinstance(operator, FloatConv) and operator.groups > 1
    }
    return [
        operator.output
        for operator in graph.operators
        if isinstance(operator, Activation)
        and not operator.relu
        and operator.bits is None
        and len(operator.inputs) == 1
        and operator.inputs[0] in accumulators
        and all(
            isinstance(reader, FloatConv) and reader.groups == 1 and reader.padding == 0
            for reader in readers[operator.output]
        )
    ]


def _divided(graph: FloatGraph, divisors: Mapping[str, Tensor]) -> FloatGraph:
    """Divide channels of tensors, and multiply the weights that read them."""
    accumulators = {
        operator.inputs[0]: divisors[operator.output]
        for operator in graph.operators
        if isinstance(operator, Activation) and operator.output in divisors
    }

    def adapted(operator: FloatOperator) -> FloatOperator:
        match operator:
            case FloatConv(weight=weight, bias=bias):
                if (columns := divisors.get(operator.input)) is not None:
                    inputs = columns[:, None] if operator.groups == 1 else columns[:, None, None]
                    weight = weight * inputs
                if (rows := accumulators.get(operator.output)) is not None:
                    weight = weight / rows[:, None, None]
                    bias = None if bias is None else bias / rows
                return replace(operator, weight=weight, bias=bias)
            case FloatLayerNorm() if operator.output in divisors:
                rows = divisors[operator.output]
                return replace(operator, gamma=operator.gamma / rows, beta=operator.beta / rows)
            case FloatAttention():
                query = divisors[operator.reads[0]]
                return replace(
                    operator,
                    content_bias=operator.content_bias / query,
                    distance_bias=operator.distance_bias / query,
                )
        return operator

    return replace(graph, operators=tuple(map(adapted, graph.operators)))


def _deepened(graph: FloatGraph, depths: Mapping[str, float]) -> FloatGraph:
    """Let tensors be unsigned from so far below zero on."""
    return replace(
        graph,
        operators=tuple(
            replace(operator, depth=depths[operator.output])
            if isinstance(operator, Activation) and operator.output in depths
            else operator
            for operator in graph.operators
        ),
    )
