"""What the `reference` backend computes for positions, attention and convolutions over bands."""

import itertools

import torch
from torch import Tensor

from zqlib.errors import InputError
from zqlib.integer.arithmetic import requantize
from zqlib.integer.nonlinear import softmax_weights
from zqlib.integer.operators import Attention, Conv2d, Positions
from zqlib.integer.products import product

__all__ = ["attend", "conv2d", "positions"]

_INT32 = torch.iinfo(torch.int32)


def positions(operator: Positions, frames: int) -> Tensor:
    """(1, 2 * frames - 1, channels) int8.

    Raises:
        InputError: the table is too short.
    """
    if frames > operator.table.shape[0]:
        raise InputError(
            f"An utterance has {frames} frames at the attention, the program takes at most "
            f"{operator.table.shape[0]}; cut the recording."
        )
    past = operator.table[:frames]
    future = past[1:].clone()
    future[:, ::2].neg_()
    return torch.cat([past.flip(0), future])[None]


def attend(
    operator: Attention, query: Tensor, key: Tensor, value: Tensor, position: Tensor, valid: Tensor
) -> Tensor:
    """The accumulator of an attention.

    Args:
        operator: the constants.
        query, key, value: (batch, frames, channels) int8.
        position: (1, 2 * frames - 1, channels) int8.
        valid: (batch, frames) bool.

    Returns:
        (batch, frames, channels) int32.
    """
    batch, frames, channels = query.shape
    size = channels // operator.heads
    heads = (batch, frames, operator.heads, size)
    content_bias = operator.content_bias.view(heads[2:])
    distance_bias = operator.distance_bias.view(heads[2:])
    context = torch.empty(heads, dtype=torch.int32)
    for row, head in itertools.product(range(batch), range(operator.heads)):
        own = slice(head * size, (head + 1) * size)
        q, k, v, p = (x[:, own] for x in (query[row], key[row], value[row], position[0]))
        by_content = product(q, k.t()) + _dot(content_bias[head], k)
        by_distance = _shift(product(q, p.t()) + _dot(distance_bias[head], p))
        scores = requantize(by_content, *operator.content)
        scores += requantize(by_distance, *operator.distance)
        scores = scores.clamp_(_INT32.min, _INT32.max).to(torch.int32)
        weights = softmax_weights(scores, *operator.exponent, valid[row])
        context[row, :, head] = _mean(weights, v)
    return context.view(batch, frames, channels)


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    """Means of (keys, size) int8 with (queries, keys) uint8 weights, in steps of 1/255; int32."""
    total = weights.sum(1, keepdim=True, dtype=torch.int64)  # 255 at least
    return ((product(weights, values).to(torch.int64) * 510 + total) // (2 * total)).to(torch.int32)


def _dot(bias: Tensor, rows: Tensor) -> Tensor:
    """(size,) int32 times (n, size) int8: (n,) int32."""
    return (rows.to(torch.int32) * bias).sum(1).to(torch.int32)


def _shift(scores: Tensor) -> Tensor:
    """(n, 2n - 1) by distance n - 1 - column, to (n, n) by frame."""
    frames, distances = scores.shape
    return scores.contiguous().as_strided((frames, frames), (distances - 1, 1), frames - 1)


def conv2d(conv: Conv2d, x: Tensor) -> Tensor:
    """(batch, frames, planes * bands) int8 or uint8, masked, to the same int32 accumulator."""
    batch, frames, channels = x.shape
    out, planes, taps, _ = conv.weight.shape
    edge = conv.padding
    x = x.reshape(batch, frames, planes, conv.bands).permute(0, 1, 3, 2)
    # (batch, frames, bands, planes)
    x = torch.constant_pad_nd(x, (0, 0, edge, edge, edge, edge), 0)
    size = (conv.reduced(frames), conv.reduced(conv.bands))
    last = [(n - 1) * conv.stride + 1 for n in size]
    accumulator = conv.bias.repeat(batch, *size, 1)
    for i in range(taps):
        for j in range(taps):
            window = x[:, i : i + last[0] : conv.stride, j : j + last[1] : conv.stride]
            taken = product(window.reshape(-1, planes), conv.weight[:, :, i, j].t())
            accumulator += taken.view_as(accumulator)
    return accumulator.transpose(2, 3).reshape(batch, size[0], out * size[1])
