"""Weights with sub-scales: the same products back, from factors of few bits."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import integers, reproducible
from torch import Tensor

from zqlib.errors import InputError
from zqlib.integer.packing import (
    group_multipliers,
    largest_multiplier,
    multiplier_bits,
    pack_weight,
    unpack_weight,
)


def products(shape: tuple[int, ...], bits: int, group_size: int, seed: int) -> Tensor:
    """Random factors times random sub-scales, int8."""
    limit = 2 ** (bits - 1) - 1
    factors = integers(shape, -limit, limit, torch.int8, seed).flatten(1)
    groups = -(-factors.shape[1] // group_size)
    most = largest_multiplier(bits)
    multipliers = integers((shape[0], groups), 1, most, torch.int8, seed + 1)
    spread = multipliers.repeat_interleave(group_size, 1)[:, : factors.shape[1]]
    return (factors * spread).view(shape)


def entry(shape: tuple[int, ...], bits: int, group_size: Any) -> dict[str, Any]:
    return {"name": "a", "shape": list(shape), "weight_bits": bits, "group_size": group_size}


@pytest.mark.parametrize(
    ("bits", "most", "stored"),
    [(2, 16, 4), (3, 16, 4), (4, 16, 4), (5, 8, 3), (6, 4, 2), (7, 2, 1)],
)
def test_the_largest_product_fits_int8(bits: int, most: int, stored: int) -> None:
    assert (largest_multiplier(bits), multiplier_bits(bits)) == (most, stored)
    assert most * (2 ** (bits - 1) - 1) <= 127


@reproducible
@given(
    bits=st.integers(2, 7), group_size=st.integers(2, 12), channels=st.integers(1, 5),
    taps=st.integers(1, 7), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_products_round_trip_in_few_bits(
    bits: int, group_size: int, channels: int, taps: int, seed: int
) -> None:
    shape = (3, channels, taps)
    weight = products(shape, bits, group_size, seed)
    packed = pack_weight(weight, bits, group_size)
    groups = 3 * -(-channels * taps // group_size)
    assert len(packed["weight"]) == -(-3 * channels * taps * bits // 8)
    assert len(packed["multipliers"]) == -(-groups * multiplier_bits(bits) // 8)
    assert torch.equal(unpack_weight(entry(shape, bits, group_size), packed, 3), weight)


def test_the_smallest_sub_scale_is_found_for_every_group() -> None:
    weight = torch.tensor([[14, -28, 98, 7, 0, 3, 0, 0]], dtype=torch.int8)
    # 98 = 7 * 14 leaves 4 bits; 7 and 3 need none, nor do zeros
    assert group_multipliers(weight, 4, 3).tolist() == [[14, 1, 1]]


@pytest.mark.parametrize("row", [[13, 8], [127, 0], [-128, 0], [119, 0], [112, 111]], ids=str)
def test_what_is_no_product_is_told(row: list[int]) -> None:
    assert group_multipliers(torch.tensor([row], dtype=torch.int8), 4, 2).tolist() == [[0]]


@pytest.mark.parametrize("group_size", [0, -1, 2.0, True, "2"])
def test_impossible_sub_scales_are_refused(group_size: Any) -> None:
    packed = pack_weight(products((2, 4, 1), 4, 2, 0), 4, 2)
    with pytest.raises(ValueError, match="impossible sub-scales"):
        unpack_weight(entry((2, 4, 1), 4, group_size), packed, 3)


def test_a_group_beyond_the_inputs_takes_no_memory() -> None:
    weight = products((2, 4, 1), 4, 4, 0)
    packed = pack_weight(weight, 4, 2**60)
    assert torch.equal(unpack_weight(entry((2, 4, 1), 4, 2**60), packed, 3), weight)


def test_sub_scales_of_another_number_are_refused() -> None:
    packed = pack_weight(products((2, 4, 1), 4, 2, 0), 4, 2)
    with pytest.raises(InputError, match="packed size"):
        unpack_weight(entry((2, 4, 1), 4, 3), packed | {"multipliers": packed["weight"]}, 3)
