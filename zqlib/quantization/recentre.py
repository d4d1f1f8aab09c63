"""Takes constants off the channels of a Conformer's tensors so that 8 bits per tensor go further.

A channel that stays far from zero spends levels on a constant. Where what reads a tensor can make
up for the constant exactly, the channel is moved to where its mean on the calibration data is zero
(channel-wise shifting: Wei et al. 2023, arXiv 2304.09145). Attention needs no making up for keys
and positions: what a constant in them adds to a score is the same for all that a query is compared
with, and a softmax takes it away.
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
)
from zqlib.quantization.scheme import QuantScheme

__all__ = ["recentre"]


def recentre(
    graph: FloatGraph, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
) -> FloatGraph:
    """The same function, the mean of each of these channels taken off.

    - Outputs of a LayerNorm that pointwise convolutions alone read: off its beta, onto their
      biases.
    - Queries: off the bias of the layer before, onto the two biases that attention adds to them.
    - Keys and positions: off the bias of the layer before. Every score of a query changes alike.
    - Values: off the bias of the layer before, onto those of the layers that read what attention
      makes of them, because the weights of an attention add up to one.

    Nothing changes if the scheme does not recentre, or without attention and LayerNorms.

    Args:
        graph: the folded model.
        batches: calibration features (batch, channels, frames) float32 and lengths (batch,) int64.
        scheme: `recentre` matters.
    """
    if not scheme.recentre:
        return graph
    readers = graph.readers()
    attentions = [o for o in graph.operators if isinstance(o, FloatAttention)]
    norms = [
        o.output
        for o in graph.operators
        if isinstance(o, FloatLayerNorm) and all(map(_is_pointwise, readers[o.output]))
    ]
    means = _Means([*norms, *(name for attention in attentions for name in attention.reads)])
    if not means.sums:
        return graph
    for features, lengths in batches:
        graph.run(features, lengths, means.observe)
    taken = {name: means.of(name) for name in means.sums}
    missing = {name: taken[name] for name in norms}
    for attention in attentions:
        [context] = readers[attention.output]
        missing[context.output] = taken[attention.reads[2]]
    return _moved(graph, taken, missing)


class _Means:
    """The mean of every channel of some tensors."""

    def __init__(self, names: Sequence[str]) -> None:
        self.sums = dict.fromkeys(names, torch.tensor(0.0))
        self.counts = dict.fromkeys(names, 0)

    def observe(self, name: str, values: Tensor) -> None:
        """Take in values (channels, frames)."""
        if name in self.sums:
            self.sums[name] = self.sums[name].to(values.device) + values.double().sum(1)
            self.counts[name] += values.shape[1]

    def of(self, name: str) -> Tensor:
        """(channels,) float32."""
        return (self.sums[name] / self.counts[name]).float()


def _is_pointwise(operator: FloatOperator) -> bool:
    """Whether it is a convolution that adds up all channels and never reads padding."""
    return isinstance(operator, FloatConv) and operator.groups == 1 and operator.padding == 0


def _moved(
    graph: FloatGraph, taken: Mapping[str, Tensor], missing: Mapping[str, Tensor]
) -> FloatGraph:
    """Take constants off the channels of tensors, and add what readers miss to their biases."""
    accumulators = {
        operator.inputs[0]: taken[operator.output]
        for operator in graph.operators
        if isinstance(operator, Activation) and operator.output in taken
    }

    def adapted(operator: FloatOperator) -> FloatOperator:
        match operator:
            case FloatConv(weight=weight):
                bias = operator.bias
                if (columns := missing.get(operator.input)) is not None:
                    bias = _sum(bias, (weight.double().sum(2) @ columns.double()).float())
                if (rows := accumulators.get(operator.output)) is not None:
                    bias = _sum(bias, -rows)
                return replace(operator, bias=bias)
            case FloatLayerNorm() if operator.output in taken:
                return replace(operator, beta=operator.beta - taken[operator.output])
            case FloatAttention():
                query = taken[operator.reads[0]]
                return replace(
                    operator,
                    content_bias=operator.content_bias + query,
                    distance_bias=operator.distance_bias + query,
                )
        return operator

    return replace(graph, operators=tuple(map(adapted, graph.operators)))


def _sum(bias: Tensor | None, change: Tensor) -> Tensor:
    return change if bias is None else bias + change
