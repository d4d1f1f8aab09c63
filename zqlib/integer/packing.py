"""Weights of fewer than 8 bits, one after the other without gaps."""

import math

import numpy as np
import torch
from torch import Tensor

from zqlib.errors import InputError

__all__ = ["pack_bits", "unpack_bits"]


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
    planes = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little")
    offset = np.packbits(planes.reshape(count, bits), axis=1, bitorder="little")[:, 0]
    values = torch.from_numpy(offset).to(torch.int16) - (1 << (bits - 1))
    return values.to(torch.int8).reshape(shape)
