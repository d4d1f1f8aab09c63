"""Triton kernels: LayerNorm, attention, argmax, and what computes each element by itself.

The arithmetic is that of `zqlib.integer.nonlinear` and `zqlib.integer.attention`, line by line.
"""

import triton
import triton.language as tl

from zqlib.integer import nonlinear
from zqlib.integer.arithmetic import MAX_SHIFT
from zqlib.integer.backends.triton.products import dyadic_product

__all__ = ["argmax", "attend", "layer_norm", "look_up", "multiply", "scores"]

_MAX_SHIFT = tl.constexpr(MAX_SHIFT)
_LINEAR = tl.constexpr(nonlinear._LINEAR)
_SQUARE = tl.constexpr((1 << 15) - nonlinear._LINEAR)
_FRACTION_BITS = tl.constexpr(nonlinear._FRACTION_BITS)
_FRACTION_MASK = tl.constexpr((1 << nonlinear._FRACTION_BITS) - 1)
_POWER_BITS = tl.constexpr(nonlinear._POWER_BITS)
_HALF_POWER = tl.constexpr(1 << (nonlinear._POWER_BITS - 1))
_DEVIATION_BITS = tl.constexpr(nonlinear._DEVIATION_BITS)
_RATIO_BITS = tl.constexpr(nonlinear._RATIO_BITS)
_ROOT_BITS = tl.constexpr(nonlinear._ROOT_BITS)
_LOWEST = tl.constexpr(-(2**31))
_HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def _floor_divide(x, divisor):
    """floor(x / divisor) for a positive divisor; `//` rounds towards zero here."""
    return tl.where(x < 0, -((divisor - 1 - x) // divisor), x // divisor)


@triton.jit
def _integer_sqrt(x):
    """`nonlinear.integer_sqrt` of an int64."""
    bits = x * 0
    rest = x
    for exponent in tl.static_range(5, -1, -1):
        step = 1 << exponent
        large = (rest >> step) > 0
        bits += tl.where(large, step, 0)
        rest = tl.where(large, rest >> step, rest)
    root = 1 << ((bits >> 1) + 1)
    for _ in tl.static_range(6):
        root = tl.maximum((root + x // root) >> 1, 1)
    return root - (root * root > x).to(tl.int64)


@triton.jit
def _exp2(x):
    """`nonlinear.exp2` of int64."""
    whole, fraction = x >> _FRACTION_BITS, x & _FRACTION_MASK
    square = ((fraction * fraction) >> _FRACTION_BITS) * _SQUARE
    mantissa = (1 << 31) + fraction * _LINEAR + square
    return mantissa >> tl.minimum(1 - whole, _MAX_SHIFT)


@triton.jit
def layer_norm(
    x, m, e, rounding, eps, out, rows, channels, low, high,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """`nonlinear.layer_norm`; `rounding` is the offset and half of 2^e, in int64."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    exists = channel < channels
    offsets = row[:, None] * channels + channel[None, :]
    mask = (row < rows)[:, None] & exists[None, :]
    value = tl.load(x + offsets, mask, other=0).to(tl.int64)
    deviation = tl.where(mask, value * channels - tl.sum(value, axis=1)[:, None], 0)
    largest = tl.max(tl.abs(deviation), axis=1)
    shift = largest * 0
    for exponent in tl.static_range(5, -1, -1):
        step = 1 << exponent
        excess = (largest >> shift) >> (_DEVIATION_BITS + step - 1)
        shift += tl.where(excess > 0, step, 0)
    deviation = (deviation + ((1 << shift) >> 1)[:, None]) >> shift[:, None]
    total = tl.sum(deviation * deviation, axis=1)
    total += tl.load(eps) >> tl.minimum(2 * shift, _MAX_SHIFT)
    root = _integer_sqrt(tl.maximum(total, 1) << (2 * _ROOT_BITS))
    ratio = _floor_divide(deviation << (_RATIO_BITS + _ROOT_BITS), root[:, None])
    multiplier = tl.load(m + channel, exists, other=0).to(tl.int64)[None, :]
    places = tl.load(e + channel, exists, other=1).to(tl.int64)[None, :]
    offset = tl.load(rounding + channel, exists, other=0)[None, :]
    result = (ratio * multiplier + offset) >> places
    result = tl.minimum(tl.maximum(result, low), high)
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask)


@triton.jit
def scores(
    query, key, bias, out, frames, keys, key_stride, heads, size,
    SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """(query + bias) key of every head: (batch, heads, frames, keys) int32.

    `key_stride` is what lies between the keys of two utterances, 0 if they share them.
    """
    i = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    j = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    utterance, head = (tl.program_id(2) // heads).to(tl.int64), tl.program_id(2) % heads
    d = tl.arange(0, SIZE)
    channels = heads * size
    channel = head * size + d
    q = tl.load(
        query + (utterance * frames + i[:, None]) * channels + channel[None, :],
        (i < frames)[:, None] & (d < size)[None, :],
        other=0,
    )
    k = tl.load(
        key + utterance * key_stride + j[None, :] * channels + channel[:, None],
        (j < keys)[None, :] & (d < size)[:, None],
        other=0,
    )
    offset = tl.load(bias + channel, d < size, other=0)
    total = tl.dot(q, k, out_dtype=tl.int32)
    total += tl.sum(k.to(tl.int32) * offset[:, None], axis=0)[None, :]
    row = tl.program_id(2).to(tl.int64) * frames + i
    tl.store(
        out + row[:, None] * keys + j[None, :], total, (i < frames)[:, None] & (j < keys)[None, :]
    )


@triton.jit
def _score(content, distance, scale, row, i, j, frames, mask):
    """Scores of (queries, keys), clamped to int32, in int64."""
    by_content = tl.load(content + row[:, None] * frames + j[None, :], mask, other=0)
    column = frames - 1 - i[:, None] + j[None, :]
    by_distance = tl.load(distance + row[:, None] * (2 * frames - 1) + column, mask, other=0)
    total = dyadic_product(by_content, tl.load(scale), tl.load(scale + 1))
    total += dyadic_product(by_distance, tl.load(scale + 2), tl.load(scale + 3))
    return tl.minimum(tl.maximum(total, _LOWEST), _HIGHEST)


@triton.jit
def attend(
    content, distance, value, lengths, scale, out, frames, heads, size,
    SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Softmax and mean, from scores by frame and by distance.

    `scale` holds m and e of content, distance and exponent, in int32. Weights are bytes without a
    sign: they multiply less 128, which a sum of the values makes up for.
    """
    i = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head, utterance = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = (utterance * heads + head) * frames + i
    length = tl.load(lengths + utterance)
    d = tl.arange(0, SIZE)
    channel = head * size + d
    top = tl.full((QUERIES,), _LOWEST, tl.int64)
    for start in range(0, length, KEYS):
        j = start + tl.arange(0, KEYS)
        mask = (i < frames)[:, None] & (j < length)[None, :]
        score = _score(content, distance, scale, row, i, j, frames, mask)
        top = tl.maximum(top, tl.max(tl.where(mask, score, _LOWEST), axis=1))
    total = tl.zeros((QUERIES,), tl.int64)
    sums = tl.zeros((QUERIES, SIZE), tl.int32)
    for start in range(0, length, KEYS):
        j = start + tl.arange(0, KEYS)
        mask = (i < frames)[:, None] & (j < length)[None, :]
        score = _score(content, distance, scale, row, i, j, frames, mask)
        below = tl.minimum(tl.maximum(score - top[:, None], _LOWEST), 0)
        exponent = dyadic_product(below.to(tl.int32), tl.load(scale + 4), tl.load(scale + 5))
        power = _exp2(exponent)
        weight = (power * 255 + _HALF_POWER) >> _POWER_BITS
        weight = tl.where(mask, weight, 0)
        total += tl.sum(weight, axis=1)
        v = tl.load(
            value + (utterance * frames + j[:, None]) * heads * size + channel[None, :],
            (j < length)[:, None] & (d < size)[None, :],
            other=0,
        )
        sums = tl.dot((weight - 128).to(tl.int8), v, sums, out_dtype=tl.int32)
        sums += 128 * tl.sum(v.to(tl.int32), axis=0)[None, :]
    total = tl.maximum(total, 1)[:, None]  # of rows beyond the last frame too
    mean = _floor_divide(sums.to(tl.int64) * 510 + total, 2 * total)
    tl.store(
        out + (utterance * frames + i[:, None]) * heads * size + channel[None, :],
        mean.to(tl.int32),
        (i < frames)[:, None] & (d < size)[None, :],
    )


@triton.jit
def argmax(x, out, channels, CHANNELS: tl.constexpr):
    """The first of the largest values of a row."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    values = tl.load(x + row * channels + channel, channel < channels, other=_LOWEST)
    tl.store(out + row, tl.argmax(values, axis=0, tie_break_left=True))


@triton.jit
def look_up(x, table, out, size, low, BLOCK: tl.constexpr):
    """A function of each element, from its table."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    index = tl.load(x + offsets, mask, other=low).to(tl.int32) - low
    tl.store(out + offsets, tl.load(table + index, mask, other=0), mask)


@triton.jit
def multiply(x, y, out, size, BLOCK: tl.constexpr):
    """x * y, element by element, in int32."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    product = tl.load(x + offsets, mask, other=0).to(tl.int32) * tl.load(y + offsets, mask, other=0)
    tl.store(out + offsets, product, mask)
