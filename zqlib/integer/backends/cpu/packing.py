"""Weights, biases and multipliers in the order in which the kernels read them, as numpy arrays.

What is packed may be a view: `aligned` makes the one copy.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = [
    "Array",
    "aligned",
    "pack_bias",
    "pack_depthwise",
    "pack_panels",
    "pad_channels",
    "trim_heap",
]

Array = npt.NDArray[Any]

_VECTOR = 32  # channels beyond the last one that a kernel may read


def pack_panels(runs: Array, width: int, depth: int) -> Array:
    """Weights of a matrix product.

    Args:
        runs: (out, runs, bytes) int8: what each output multiplies with the bytes of each run.
        width: of a panel, in outputs.
        depth: weights of an output that are multiplied at a time.

    Returns:
        (panels, runs, groups, width, depth) int8, zero beyond the last output and the last byte.
    """
    out, count, size = runs.shape
    padded = np.pad(runs, ((0, -out % width), (0, 0), (0, -size % depth)))
    panels = padded.reshape(-1, width, count, padded.shape[2] // depth, depth)
    return panels.transpose(0, 2, 3, 1, 4)


def pack_depthwise(weight: Array, lanes: int, depth: int) -> Array:
    """Weights of a depthwise convolution, in as many phases as taps are multiplied at a time.

    Args:
        weight: (channels, taps) int8.
        lanes: of a vector.
        depth: taps that are multiplied at a time.

    Returns:
        (vectors, phases, groups, lanes, depth) int8: in phase p, tap k lies at place p + k.
    """
    channels, taps = weight.shape
    groups = (taps + 2 * (depth - 1)) // depth
    phases = np.zeros((depth, channels + -channels % lanes, depth * groups), np.int8)
    for phase in range(depth):
        phases[phase, :channels, phase : phase + taps] = weight
    split = phases.reshape(depth, -1, lanes, groups, depth)
    return split.transpose(1, 0, 3, 2, 4)


def pack_bias(bias: Tensor | None, weight: Tensor, zero: int) -> Array:
    """The bias less what the offset `zero` of the input's bytes adds to it, modulo 2^32.

    Args:
        bias: (out,) int32 or None.
        weight: (out, ...) int8.
        zero: the byte that stands for 0.

    Returns:
        (out + padding,) int32.
    """
    folded = -zero * weight.flatten(1).numpy().sum(1, dtype=np.int64)
    if bias is not None:
        folded = folded + bias.long().numpy()
    return pad_channels(folded.astype(np.int32), 0)


def aligned(values: Array) -> Array:
    """A copy that begins on a cache line, so that no vector of weights lies on two."""
    memory = np.empty(values.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def pad_channels(values: Array, fill: int) -> Array:
    """One value per channel, with room for the vectors that read beyond the last."""
    return np.pad(values, (0, _VECTOR + -len(values) % _VECTOR), constant_values=fill)


def trim_heap() -> None:
    """Give memory that nothing uses any more back to the operating system, if the C library can.

    glibc keeps what it freed of the layers as they were stored; of a large model that is as much
    again as the packed weights.
    """
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
