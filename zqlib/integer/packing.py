"""Weights of fewer than 8 bits, one after the other without gaps."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zqlib.errors import InputError

__all__ = ["pack_bits", "unpack_bits", "unpack_weight"]


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Signed integers of `bits` bits, one after the other without gaps, as (bytes,) uint8."""
    offset = (values.flatten().to(torch.int16) + (1 << (bits - 1))).to(torch.uint8).numpy()
    planes = np.unpackbits(offset[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(planes, bitorder="little"))


def unpack_bits(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`: int8 of the given shape.

    Raises:
        InputError: the number of bytes does not fit the shape.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (-(-count * bits // 8),):
        raise InputError(f"A weight of shape {shape} at {bits} bits has the wrong packed size.")
    offset = packed.numpy()
    if bits < 8:
        planes = np.unpackbits(offset, count=count * bits, bitorder="little")
        offset = np.packbits(planes.reshape(count, bits), axis=1, bitorder="little")[:, 0]
    values = offset - np.uint8(1 << (bits - 1))  # modulo 2^8
    return torch.from_numpy(values.view(np.int8)).reshape(shape)


def unpack_weight(entry: dict[str, Any], packed: Tensor, axes: int) -> Tensor:
    """The weight that an operator's description names; its `shape` is taken out of it.

    Raises:
        KeyError, TypeError, ValueError: the description is not one of a weight of so many axes.
        InputError: the number of bytes does not fit the shape.
    """
    shape, bits = tuple(map(int, entry.pop("shape"))), entry["weight_bits"]
    possible = type(bits) is int and 2 <= bits <= 8 and len(shape) == axes and min(shape) >= 1
    if not possible:
        raise ValueError(f"{entry['name']} has impossible weights")
    return unpack_bits(packed, bits, shape)
