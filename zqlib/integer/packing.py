"""Weights of fewer than 8 bits, one after the other without gaps.

Weights with sub-scales are products: an integer of `weight_bits` bits times a small one that a
group of them shares. The program holds the products, int8 as all weights; a file the factors.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zqlib.errors import InputError

__all__ = [
    "group_multipliers",
    "largest_multiplier",
    "multiplier_bits",
    "pack_bits",
    "pack_weight",
    "stored_bits",
    "unpack_bits",
    "unpack_weight",
]


def multiplier_bits(bits: int) -> int:
    """The bits of a stored sub-scale: what int8 leaves, and no more than pay for themselves."""
    return min(8 - bits, 4)


def largest_multiplier(bits: int) -> int:
    """The largest sub-scale of weights of so many bits: 2 to 16, and int8 holds the products."""
    return 1 << multiplier_bits(bits)


def stored_bits(weight: Tensor, bits: int, group_size: int | None) -> int:
    """The bits that a weight (out, ...) of so many bits takes, its sub-scales among them."""
    if group_size is None:
        return weight.numel() * bits
    groups = len(weight) * -(-weight[0].numel() // group_size)
    return weight.numel() * bits + groups * multiplier_bits(bits)


def group_multipliers(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """The smallest sub-scale that every group of weights is made of.

    Args:
        weight: (out, ...) int8: the products.
        bits: of the factors that are left.
        group_size: inputs of an output that share a sub-scale; the last group may be smaller.

    Returns:
        (out, groups) int8, 0 for a group that no sub-scale fits.
    """
    rows = weight.flatten(1)
    group_size = min(group_size, rows.shape[1])
    groups = functional.pad(rows, (0, -rows.shape[1] % group_size))
    groups = groups.view(len(rows), -1, group_size)
    largest = torch.maximum(groups.amax(2).short(), -groups.amin(2).short())
    found = torch.zeros_like(largest, dtype=torch.int8)
    for multiplier in range(largest_multiplier(bits), 0, -1):
        fits = (groups % multiplier == 0).all(2) & (largest <= multiplier * (2 ** (bits - 1) - 1))
        found[fits] = multiplier
    return found


def pack_weight(weight: Tensor, bits: int, group_size: int | None) -> dict[str, Tensor]:
    """What a file holds of an operator's weight, as (bytes,) uint8 by name.

    Args:
        weight: (out, ...) int8.
        bits: of a weight, or of what its sub-scale leaves of it.
        group_size: see `group_multipliers`; None for weights without sub-scales.
    """
    if group_size is None:
        return {"weight": pack_bits(weight, bits)}
    multipliers, stored = group_multipliers(weight, bits, group_size), multiplier_bits(bits)
    factors = weight.flatten(1) // _spread(multipliers, group_size, weight)
    return {
        "weight": pack_bits(factors, bits),
        "multipliers": pack_bits(multipliers - 1 - (1 << (stored - 1)), stored),
    }


def unpack_weight(entry: dict[str, Any], packed: Mapping[str, Tensor], axes: int) -> Tensor:
    """The weight that an operator's description names; its `shape` is taken out of it.

    Raises:
        KeyError, TypeError, ValueError: the description is not one of a weight of so many axes.
        InputError: the number of bytes does not fit the shape.
    """
    shape, bits = tuple(map(int, entry.pop("shape"))), entry["weight_bits"]
    possible = type(bits) is int and 2 <= bits <= 8 and len(shape) == axes and min(shape) >= 1
    if not possible:
        raise ValueError(f"{entry['name']} has impossible weights")
    weight, group_size = unpack_bits(packed["weight"], bits, shape), entry["group_size"]
    if group_size is None:
        return weight
    if type(group_size) is not int or group_size < 1 or bits == 8:
        raise ValueError(f"{entry['name']} has impossible sub-scales")
    stored, groups = multiplier_bits(bits), -(-math.prod(shape[1:]) // group_size)
    multipliers = unpack_bits(packed["multipliers"], stored, (shape[0], groups))
    multipliers = multipliers + 1 + (1 << (stored - 1))
    return (weight.flatten(1) * _spread(multipliers, group_size, weight)).view(shape)


def _spread(multipliers: Tensor, group_size: int, weight: Tensor) -> Tensor:
    """Multipliers (out, groups) as (out, inputs), each beside the weights of its group."""
    inputs = weight[0].numel()
    return multipliers.repeat_interleave(min(group_size, inputs), 1)[:, :inputs]


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
