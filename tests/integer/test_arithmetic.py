"""Dyadic arithmetic against Python's exact integers and fractions."""

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import reproducible

from zqlib.errors import LoweringError
from zqlib.integer.arithmetic import MAX_SHIFT, dyadic, requantize

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
accumulators = st.integers(INT32_MIN, INT32_MAX) | st.sampled_from([INT32_MIN, -1, 0, 1, INT32_MAX])
mantissas = st.integers(2**30, 2**31 - 1) | st.sampled_from([0, 2**30, 2**31 - 1])
shifts = st.integers(1, MAX_SHIFT) | st.sampled_from([1, MAX_SHIFT])


def requantize_one(accumulator: int, m: int, e: int) -> int:
    result = requantize(
        torch.tensor([accumulator], dtype=torch.int32),
        torch.tensor([m], dtype=torch.int32),
        torch.tensor([e], dtype=torch.int8),
    )
    assert result.dtype == torch.int64
    return int(result)


@reproducible
@given(st.floats(2.0**-32, 2.0**29 * 1.999))
@example(2.0**-32)
@example(1.0)
@example(1.0 - 2.0**-53)  # rounds up to the next power of two
@example(2.0**29)
def test_dyadic_is_within_its_relative_error(multiplier: float) -> None:
    m, e = dyadic(torch.tensor([multiplier], dtype=torch.float64))
    assert (m.dtype, e.dtype) == (torch.int32, torch.int8)
    assert 2**30 <= int(m) < 2**31
    assert 1 <= int(e) <= MAX_SHIFT
    exact = Fraction(multiplier)
    assert abs(Fraction(int(m), 2 ** int(e)) - exact) <= exact / 2**31


@reproducible
@given(st.floats(0, 2.0**-32, exclude_max=True), accumulators)
@example(0.0, INT32_MAX)
@example(5e-324, INT32_MIN)
@example(2.0**-32 * (1 - 2.0**-30), INT32_MIN)
def test_vanishing_multiplier_is_zero_and_loses_nothing(
    multiplier: float, accumulator: int
) -> None:
    m, e = dyadic(torch.tensor([multiplier], dtype=torch.float64))
    assert requantize_one(accumulator, int(m), int(e)) == 0
    assert int(m) == 0 or multiplier > 2.0**-32 * (1 - 2.0**-31)  # rounded to 2^-32 itself
    assert floor(abs(accumulator) * Fraction(multiplier) + Fraction(1, 2)) == 0


@pytest.mark.parametrize("bad", [-1e-9, float("nan"), float("inf"), -float("inf")])
def test_impossible_multiplier_is_refused(bad: float) -> None:
    with pytest.raises(LoweringError, match="negative or not finite"):
        dyadic(torch.tensor([0.5, bad], dtype=torch.float64))


@pytest.mark.parametrize("large", [2.0**30, 2.0**30 * (1 - 2.0**-40), 1e300])
def test_too_large_multiplier_is_refused(large: float) -> None:
    with pytest.raises(LoweringError, match="too large"):
        dyadic(torch.tensor([0.5, large], dtype=torch.float64))


def test_dyadic_treats_each_channel_alone() -> None:
    multipliers = torch.tensor([0.0, 0.75, 2.0**-40, 3.0], dtype=torch.float64)
    m, e = dyadic(multipliers)
    assert m.tolist() == [0, 3 << 29, 0, 3 << 29]
    assert e.tolist() == [1, 31, 1, 29]


@reproducible
@given(accumulators, mantissas, shifts)
@example(INT32_MIN, 2**31 - 1, 1)
@example(INT32_MAX, 2**31 - 1, 1)
@example(INT32_MIN, 2**31 - 1, MAX_SHIFT)
@example(INT32_MAX, 2**31 - 1, MAX_SHIFT)
def test_requantize_is_exact_and_rounds_half_up(accumulator: int, m: int, e: int) -> None:
    exact = accumulator * Fraction(m, 2**e)  # beyond int64 nowhere: Python would not wrap
    assert requantize_one(accumulator, m, e) == floor(exact + Fraction(1, 2))


@pytest.mark.parametrize(
    ("accumulator", "expected"), [(-5, -2), (-3, -1), (-1, 0), (0, 0), (1, 1), (3, 2), (5, 3)]
)
def test_ties_go_toward_plus_infinity(accumulator: int, expected: int) -> None:
    assert requantize_one(accumulator, 2**30, 31) == expected  # times exactly one half


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_requantize_is_per_channel_and_leaves_its_operand_alone(dtype: torch.dtype) -> None:
    values = torch.tensor([[[1, 2], [100, 101]]], dtype=dtype)
    kept = values.clone()
    m, e = dyadic(torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert requantize(values, m, e).tolist() == [[[1, 4], [50, 202]]]
    assert torch.equal(values, kept)
