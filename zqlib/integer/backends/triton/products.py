"""Triton kernels: convolutions on the tensor cores, and what becomes of their accumulators.

Tensors are (batch, frames, channels), contiguous. All addresses within an utterance fit int32.
"""

import triton
import triton.language as tl

__all__ = ["convolve", "depthwise", "dyadic_product", "requantize"]


@triton.jit
def dyadic_product(x, m, e):
    """round(x * m * 2^-e), half up, in int64: `zqlib.integer.arithmetic.requantize`."""
    shift = e.to(tl.int64)
    return (x.to(tl.int64) * m.to(tl.int64) + (1 << (shift - 1))) >> shift


@triton.jit
def _store_sum(total, terms, table, out, offsets, channel, mask, low, high):
    """Add the terms (x, m, e) to an int64 total; clamp, look up the function's value, store."""
    for index in tl.static_range(len(terms)):
        x, m, e = terms[index]
        value = tl.load(x + offsets, mask, other=0)
        total += dyadic_product(value, tl.load(m + channel), tl.load(e + channel))
    total = tl.minimum(tl.maximum(total, low), high)
    if table is not None:
        total = tl.load(table + (total - low))
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask)


@triton.jit
def _store_accumulator(
    accumulator, scale, terms, table, out, offsets, channel, mask, low, high, channels
):  # fmt: skip
    """Store an accumulator, or with a `scale` (m, e) its requantization together with terms."""
    if scale is None:
        tl.store(out + offsets, accumulator, mask)
    else:
        channel = tl.minimum(channel, channels - 1)  # where the mask is false, anything will do
        total = dyadic_product(
            accumulator, tl.load(scale[0] + channel), tl.load(scale[1] + channel)
        )
        _store_sum(total, terms, table, out, offsets, channel, mask, low, high)


@triton.jit
def convolve(
    x, weight, bias, lengths, scale, terms, table, out,
    frames, planes, bands, out_frames, out_planes, out_bands,
    taps, band_taps, stride, dilation, padding, band_padding, low, high,
    OFFSET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A dense convolution over frames and bands: Conv2d, and Conv1d as one of a single band.

    A row is a band of a frame, a column an output plane. The weights are (out planes, taps, band
    taps, planes). Tensor cores multiply signed bytes: values that can be above 127 are read less an
    OFFSET of 128, which the bias makes up for, padding included. Their sums saturate and do not
    wrap; but none leaves int32, since no |x - 128| is above the largest x that the program's proof
    counts with.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    utterance = tl.program_id(2).to(tl.int64)
    frame, band = row // out_bands, row % out_bands
    length = tl.load(lengths + utterance)
    x += utterance * frames * planes * bands
    depth = planes * taps * band_taps
    accumulator = tl.zeros((ROWS, COLUMNS), tl.int32)
    for tap in range(taps * band_taps):
        t = frame * stride + (tap // band_taps) * dilation - padding
        b = band * stride + tap % band_taps - band_padding
        inside = (t >= 0) & (t < length) & (b >= 0) & (b < bands)
        for start in range(0, planes, DEPTH):
            plane = start + tl.arange(0, DEPTH)
            values = tl.load(
                x + (t * planes * bands + b)[:, None] + (plane * bands)[None, :],
                inside[:, None] & (plane < planes)[None, :],
                other=0,
            )
            if OFFSET:
                values = values ^ OFFSET
            weights = tl.load(
                weight + (column * depth)[None, :] + (tap * planes + plane)[:, None],
                (column < out_planes)[None, :] & (plane < planes)[:, None],
                other=0,
            )
            values = values.to(tl.int8, bitcast=True)
            accumulator = tl.dot(values, weights, accumulator, out_dtype=tl.int32)
    accumulator += tl.load(bias + column, column < out_planes, other=0)[None, :]
    channels = out_planes * out_bands
    channel = (column * out_bands)[None, :] + band[:, None]
    offsets = (utterance * out_frames + frame[:, None]) * channels + channel
    mask = (frame < out_frames)[:, None] & (column < out_planes)[None, :]
    _store_accumulator(
        accumulator, scale, terms, table, out, offsets, channel, mask, low, high, channels
    )


@triton.jit
def depthwise(
    x, weight, bias, lengths, scale, terms, table, out,
    frames, channels, out_frames, depth, stride, padding, low, high,
    OFFSET: tl.constexpr, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, STEP: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """A Conv1d with a group per channel, as a product of matrices for each channel.

    A row is the window of input frames that a block of STEP output frames reads, a column one of
    these: its weights are the taps, moved down by `stride` rows from column to column, and zeros
    (a Toeplitz matrix). Much of it is zeros, and yet tensor cores take less time for all of it than
    other units for the taps alone. The weights are (channels, columns, depth), depth a multiple of
    DEPTH; OFFSET is as in `convolve`.
    """
    first = (tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)) * STEP
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[:, None, None]
    utterance = tl.program_id(2).to(tl.int64)
    column = tl.arange(0, STEP)[None, None, :]
    length = tl.load(lengths + utterance)
    x += utterance * frames * channels
    exists = channel < channels
    accumulator = tl.zeros((CHANNELS, BLOCKS, STEP), tl.int32)
    for start in range(0, depth, DEPTH):
        row = start + tl.arange(0, DEPTH)
        t = (first * stride - padding)[None, :, None] + row[None, None, :]
        values = tl.load(x + t * channels + channel, (t >= 0) & (t < length) & exists, other=0)
        if OFFSET:
            values = values ^ OFFSET
        weights = tl.load(
            weight + (channel * STEP + column) * depth + row[None, :, None], exists, other=0
        )
        values = values.to(tl.int8, bitcast=True)
        accumulator = tl.dot(values, weights, accumulator, out_dtype=tl.int32)
    accumulator += tl.load(bias + channel, exists, other=0)
    frame = first[None, :, None] + column
    offsets = (utterance * out_frames + frame) * channels + channel
    mask = (frame < out_frames) & exists
    _store_accumulator(
        accumulator, scale, terms, table, out, offsets, channel, mask, low, high, channels
    )


@triton.jit
def requantize(terms, out, size, channels, low, high, BLOCK: tl.constexpr):
    """A requantization that no convolution takes along."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64)
    _store_sum(total, terms, None, out, offsets, offsets % channels, offsets < size, low, high)
