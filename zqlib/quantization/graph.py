"""A float model as a list of operators, its BatchNorm layers folded away.

The same operators, at the same points, as the integer program that it will be lowered to.
Convolutions, products and attention leave accumulators; every other tensor gets quantized, so
calibration looks at all of those and nothing else.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zqlib.models.conformer import relative_positions, relative_shift
from zqlib.models.layers import masked_conv, valid_frames
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

__all__ = ["FloatGraph", "Value", "execute", "joined"]


Value = tuple[Tensor, Tensor]
"""A tensor (batch, channels, 1, frames) float32, and lengths (batch,) int64."""


def execute(operator: FloatOperator, reads: Sequence[Value]) -> Value:
    """What an operator makes of the tensors that it reads, in order."""
    x, lengths = reads[0]
    match operator:
        case FloatConv():
            return masked_conv(
                x, lengths, operator.weight, operator.bias,
                operator.stride, operator.padding, operator.dilation, operator.groups,
            )  # fmt: skip
        case FloatConv2d():
            return _conv2d(operator, x, lengths)
        case Activation():
            for other, _ in reads[1:]:
                x = x + other
            return (x.relu() if operator.relu else x), lengths
        case FloatLayerNorm():
            shape = operator.gamma.shape
            normalised = functional.layer_norm(
                x.transpose(1, 3), shape, operator.gamma, operator.beta, operator.eps
            )
            return normalised.transpose(1, 3), lengths
        case FloatFunction():
            return operator(x), lengths
        case FloatProduct():
            return x * reads[1][0], lengths
        case FloatPositions():
            table = relative_positions(x.shape[3], operator.channels).to(x.device)
            return table.t()[None, :, None, :], lengths.new_full((1,), table.shape[0])
        case FloatAttention():
            key, value, positions = (other for other, _ in reads[1:])
            return _attention(operator, x, key, value, positions, lengths), lengths


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Operators in order of execution.

    Attributes:
        operators: see `zqlib.quantization.nodes`.
        input: name of the features.
        channels: channels of the features.
        logits: name of the last convolution's output.
    """

    operators: tuple[FloatOperator, ...]
    input: str
    channels: int
    logits: str

    def to(self, device: torch.device | str) -> "FloatGraph":
        """The same with its tensors on a device."""

        def moved(operator: FloatOperator) -> FloatOperator:
            values = vars(operator).items()
            tensors: dict[str, Any] = {n: v.to(device) for n, v in values if isinstance(v, Tensor)}
            return replace(operator, **tensors)

        return replace(self, operators=tuple(map(moved, self.operators)))

    def readers(self) -> dict[str, list[FloatOperator]]:
        """The operators that read each tensor, in order."""
        readers: dict[str, list[FloatOperator]] = {}
        for operator in self.operators:
            for name in operator.reads:
                readers.setdefault(name, []).append(operator)
        return readers

    @torch.no_grad()
    def run(
        self,
        features: Tensor,
        lengths: Tensor,
        observe: Callable[[str, Tensor], None] | None = None,
        instead: Mapping[str, Tensor] | None = None,
        step: Callable[[FloatOperator, Sequence[Value]], Value] = execute,
    ) -> tuple[Tensor, Tensor]:
        """Execute in float32.

        Args:
            features: (batch, channels, frames) float32.
            lengths: (batch,) int64.
            observe: called with the name and the valid values, (channels, frames of all
                utterances), of the features and of every activation.
            instead: (batch, channels, frames) float32 by name: what an operator reads in the place
                of what was computed, and observed, before it.
            step: called in the place of `execute`.

        Returns:
            Logits (batch, classes, frames) float32 and output lengths (batch,).
        """
        x = features.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        instead = instead or {}
        values = {self.input: (instead[self.input][:, :, None] if instead else x, lengths)}
        last_reader = {name: operator for operator in self.operators for name in operator.reads}
        if observe:
            observe(self.input, _valid(x, lengths))
        for operator in self.operators:
            result = step(operator, [values[name] for name in operator.reads])
            if observe and not isinstance(operator, Accumulating):
                observe(operator.output, _valid(*result))
            if operator.output in instead:
                result = instead[operator.output][:, :, None], result[1]
            values[operator.output] = result
            for name in set(operator.reads):
                if last_reader[name] is operator:
                    del values[name]
        logits, lengths = values[self.logits]
        return logits.squeeze(2), lengths


def joined(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Batches of features (batch, channels, frames) and lengths (batch,) as one, padded."""
    most = max(features.shape[2] for features, _ in batches)
    features = torch.cat([functional.pad(x, (0, most - x.shape[2])) for x, _ in batches])
    return features, torch.cat([lengths for _, lengths in batches])


def _conv2d(conv: FloatConv2d, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, _, frames = x.shape
    planes = conv.weight.shape[1]
    valid = valid_frames(frames, lengths)
    x = (x * valid[:, None, None, :]).reshape(batch, planes, channels // planes, frames)
    # the kernel is stored over (frames, bands)
    weight = conv.weight.transpose(2, 3)
    x = functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding).flatten(1, 2)
    return x.unsqueeze(2), (lengths + 2 * conv.padding - weight.shape[2]) // conv.stride + 1


def _attention(
    attention: FloatAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    lengths: Tensor,
) -> Tensor:
    batch, channels, _, frames = query.shape
    heads = (batch, attention.heads, channels // attention.heads, frames)
    bias = attention.content_bias[:, None, None], attention.distance_bias[:, None, None]
    content = (query + bias[0]).view(heads).transpose(2, 3) @ key.reshape(heads)
    by_distance = positions.reshape(attention.heads, heads[2], -1)
    distance = relative_shift((query + bias[1]).view(heads).transpose(2, 3) @ by_distance)
    scores = (content + distance) / math.sqrt(heads[2])
    valid = valid_frames(frames, lengths)[:, None, None, :]
    weights = scores.masked_fill(~valid, float("-inf")).softmax(-1)
    context = value.reshape(heads) @ weights.transpose(2, 3)
    return context.reshape(query.shape)


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, channels, 1, frames) to the valid frames, (channels, frames)."""
    return torch.cat([row[:, 0, :length] for row, length in zip(x, lengths, strict=True)], dim=1)
