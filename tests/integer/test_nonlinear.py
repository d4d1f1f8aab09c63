"""Integer softmax, LayerNorm, roots and gates against float64 and Python's exact integers."""

from collections.abc import Callable
from fractions import Fraction
from math import isqrt, log

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import integers, reproducible
from torch import Tensor

from zqlib.errors import LoweringError
from zqlib.integer.arithmetic import dyadic
from zqlib.integer.guard import IntegerOnly
from zqlib.integer.nonlinear import (
    LayerNormConstants,
    exp2,
    exponent_multiplier,
    integer_sqrt,
    layer_norm,
    logistic,
    sigmoid,
    softmax_weights,
    swish,
)

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
ONE = 1 << 16  # of the exponent in exp2
UNIT_SCALE = log(2) / ONE  # scores on this scale are exponents of exp2
SCALES = [1e-6, 1e-4, 1e-2, 0.3, 5.0]
scores_of_a_row = st.lists(
    st.integers(INT32_MIN, INT32_MAX)
    | st.integers(-1000, 1000)
    | st.sampled_from([INT32_MIN, 0, INT32_MAX]),
    min_size=1,
    max_size=40,
)
scales = st.floats(1e-6, 5.0) | st.sampled_from(SCALES)


def guarded(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    with IntegerOnly():
        return function(*arguments)


# Square root


def assert_exact_root(values: list[int]) -> None:
    root = guarded(integer_sqrt, torch.tensor(values))
    assert root.dtype == torch.int64
    assert root.tolist() == [isqrt(value) for value in values]


def test_root_of_small_numbers_and_around_every_power_of_two() -> None:
    assert_exact_root(list(range(5000)))
    assert_exact_root([2**k + step for k in range(1, 62) for step in (-1, 0, 1)] + [2**62 - 1])


@reproducible
@given(st.lists(st.integers(2, 2**31 - 1), min_size=1, max_size=50))
@example([2, 2**31 - 1])
def test_root_around_perfect_squares(roots: list[int]) -> None:
    assert_exact_root([root**2 + step for root in roots for step in (-1, 0, 1)])


@reproducible
@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=50))
def test_root_of_any_number(values: list[int]) -> None:
    assert_exact_root(values)


# Powers of two and softmax


@pytest.mark.parametrize("octave", [0, 1, 2, 7, 15, 24, 29])
def test_exp2_is_within_its_factor_over_all_fractions(octave: int) -> None:
    x = -torch.arange(octave * ONE, (octave + 1) * ONE + 1)
    power = guarded(exp2, x)
    exact = torch.exp2(30 + x.double() / ONE)
    assert power.dtype == torch.int64
    assert bool((power <= 1.0035 * exact).all())
    assert bool((power + 1 > 0.998 * exact).all())  # the shift takes the floor


def test_exp2_spread_of_relative_errors() -> None:
    x = -torch.arange(ONE)
    ratio = guarded(exp2, x) / torch.exp2(30 + x.double() / ONE)
    assert float(ratio.max() / ratio.min()) < 1.0053


def test_exp2_at_whole_exponents_and_far_below() -> None:
    whole = torch.arange(31)
    assert torch.equal(guarded(exp2, -whole * ONE), torch.tensor(1 << 30) >> whole)
    below = torch.tensor([-30 * ONE - 1, -62 * ONE, -(2**31), -(2**61), -(2**63)])
    assert guarded(exp2, below).tolist() == [0] * 5


def test_exp2_is_monotonic() -> None:
    assert bool((guarded(exp2, torch.arange(-32 * ONE, 1)).diff() >= 0).all())


@reproducible
@given(scales)
def test_exponent_multiplier(scale: float) -> None:
    m, e = exponent_multiplier(scale)
    exact = Fraction(scale) * ONE / Fraction(log(2))
    assert 2**30 <= int(m) < 2**31
    assert abs(Fraction(int(m), 2 ** int(e)) - exact) <= exact / 2**31 * (1 + Fraction(1, 10**5))


def test_exponent_multiplier_out_of_reach() -> None:
    with pytest.raises(LoweringError, match="too large"):
        exponent_multiplier(1e5)


def softmax_of(scores: Tensor, scale: float, valid: Tensor | None = None) -> Tensor:
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    return guarded(softmax_weights, scores, *exponent_multiplier(scale), valid)


def softmax_error(scores: Tensor, scale: float) -> float:
    """The largest, in steps of the output."""
    result = softmax_of(scores, scale)
    assert (result.dtype, result.shape) == (torch.uint8, scores.shape)
    below = scores.double() - scores.amax(-1, keepdim=True)
    return float((result - 255 * torch.exp(scale * below)).abs().max())


@pytest.mark.parametrize("keys", [1, 2, 3, 17, 256, 2000])
@pytest.mark.parametrize("scale", SCALES)
def test_softmax_is_within_its_error(scale: float, keys: int) -> None:
    reach = min(INT32_MAX, int(12 / scale) + 1)
    for seed, width in enumerate([INT32_MAX, reach, reach // 4 + 1, reach // 16 + 1]):
        scores = integers((8, keys), -width, width, torch.int32, seed)
        assert softmax_error(scores, scale) < 1.23
        scores[:, :: max(1, keys // 2)] = INT32_MAX
        scores[::2, -1] = INT32_MIN
        assert softmax_error(scores, scale) < 1.23


@pytest.mark.parametrize("others", [0, 1, 8])
@pytest.mark.parametrize("far", [0.27, 0.84])
def test_softmax_over_all_fractions_of_the_exponent(far: float, others: int) -> None:
    """One key at the top, one at each fraction, others of weight 2^-far together.

    The polynomial of exp2 is farthest off above at 0.27, below at 0.84.
    """
    scores = torch.zeros(2 * ONE + 1, 2 + others, dtype=torch.int32)
    scores[:, 1] = -torch.arange(2 * ONE + 1)
    scores[:, 2:] = -round((far + others.bit_length() - 1) * ONE)
    assert softmax_error(scores, UNIT_SCALE) < 1.23


@reproducible
@given(scores_of_a_row, scales)
@example([INT32_MIN, INT32_MAX], 1e-6)
@example([INT32_MIN, INT32_MIN + 1], 5.0)
@example([INT32_MAX] * 40, 5.0)
def test_softmax_of_any_row(row: list[int], scale: float) -> None:
    assert softmax_error(torch.tensor(row, dtype=torch.int32), scale) < 1.23


@pytest.mark.parametrize("value", [INT32_MIN, -7, 0, INT32_MAX])
@pytest.mark.parametrize("keys", [1, 2, 3, 7, 255, 511, 2000])
def test_softmax_of_equal_scores_is_even(keys: int, value: int) -> None:
    scores = torch.full((keys,), value, dtype=torch.int32)
    assert set(softmax_of(scores, 0.3).tolist()) == {255}


@pytest.mark.parametrize("value", [INT32_MIN, -7, 0, INT32_MAX])
def test_softmax_with_one_valid_key_is_all_on_it(value: int) -> None:
    scores = torch.tensor([INT32_MAX, value, INT32_MIN, INT32_MAX], dtype=torch.int32)
    valid = torch.tensor([False, True, False, False])
    assert softmax_of(scores, 1e-6, valid).tolist() == [0, 255, 0, 0]


@reproducible
@given(scores_of_a_row, scores_of_a_row, scales)
@example([INT32_MIN, INT32_MIN], [INT32_MAX], 5.0)
@example([0, 1, 2], [INT32_MIN, INT32_MAX, 3], 0.3)
def test_masked_keys_are_zero_and_without_influence(
    row: list[int], padding: list[int], scale: float
) -> None:
    scores = torch.tensor([row + padding, row + [0] * len(padding)], dtype=torch.int32)
    valid = torch.arange(scores.shape[1]) < len(row)
    alone = softmax_of(torch.tensor(row, dtype=torch.int32), scale)
    padded = softmax_of(scores, scale, valid)
    assert torch.equal(padded[:, : len(row)], alone.expand(2, -1))
    assert int(padded[:, len(row) :].sum()) == 0


@reproducible
@given(
    st.lists(st.integers(-(2**30), 2**30 - 1), min_size=1, max_size=40),
    st.integers(-(2**30), 2**30),
    scales,
)
def test_softmax_depends_on_differences_only(row: list[int], shift: int, scale: float) -> None:
    scores = torch.tensor(row, dtype=torch.int32)
    assert torch.equal(softmax_of(scores, scale), softmax_of(scores + shift, scale))


# Sigmoid and Swish

ALL_16_BITS = torch.arange(-(2**15), 2**15, dtype=torch.int32)
GATE_SCALES = [1e-6, 1e-4, 1e-3, 0.02, 1.0]


@pytest.mark.parametrize("scale", GATE_SCALES)
def test_logistic_over_all_of_16_bits(scale: float) -> None:
    value = guarded(logistic, ALL_16_BITS, *exponent_multiplier(scale))
    exact = torch.sigmoid(ALL_16_BITS.double() * scale)
    assert float((value / 2**30 - exact).abs().max()) < 0.0009
    assert bool((value.diff() >= 0).all())
    assert 0 <= int(value.min()) and int(value.max()) <= 2**30
    assert bool(((value[1:] + value[1:].flip(0)) - 2**30).abs().le(1).all())  # x and -x


@pytest.mark.parametrize("scale", GATE_SCALES)
@pytest.mark.parametrize("high", [255, 63, 3])
def test_sigmoid_is_within_its_bound(scale: float, high: int) -> None:
    value = guarded(sigmoid, ALL_16_BITS, *exponent_multiplier(scale), high)
    exact = torch.sigmoid(ALL_16_BITS.double() * scale) * high
    assert float((value - exact).abs().max()) < 0.5 + 0.00085 * high + 1e-6
    assert 0 <= int(value.min()) and int(value.max()) <= high


@pytest.mark.parametrize("scale", GATE_SCALES)
@pytest.mark.parametrize("steps_of_largest", [127, 7])
def test_swish_is_within_its_bound(scale: float, steps_of_largest: int) -> None:
    output_scale = 2**15 * scale / steps_of_largest
    gain = dyadic(torch.tensor([scale / 2**15 / output_scale], dtype=torch.float64))
    value = guarded(swish, ALL_16_BITS, exponent_multiplier(scale), gain)
    x = ALL_16_BITS.double() * scale
    exact = x * torch.sigmoid(x) / output_scale
    assert float((value - exact).abs().max()) < 0.5 + 0.0008 / output_scale + 1e-3


@reproducible
@given(st.integers(INT32_MIN, INT32_MAX), scales)
def test_logistic_of_any_int32(x: int, scale: float) -> None:
    value = guarded(logistic, torch.tensor([x], dtype=torch.int32), *exponent_multiplier(scale))
    assert abs(int(value) / 2**30 - float(torch.sigmoid(torch.tensor(x * scale).double()))) < 1e-3


# LayerNorm


def layer_norm_reference(
    x: Tensor, gamma: Tensor, eps: float, input_scale: float, output_scale: float
) -> Tensor:
    """Without beta, in steps of the output; 0 for a constant row."""
    real = (x.double() - x.double().mean(-1, keepdim=True)) * input_scale
    deviation = (real.square().mean(-1, keepdim=True) + eps).sqrt()
    return gamma.double() / output_scale * real / deviation.clamp(min=1e-300)


def error_bound(
    x: Tensor, y: Tensor, gamma: Tensor, eps: float, input_scale: float, output_scale: float
) -> Tensor:
    """What the book derives, in steps of the output."""
    channels = x.shape[-1]
    d = (x.long() * channels - x.long().sum(-1, keepdim=True)).double()
    digits = torch.frexp(d.abs().amax(-1, keepdim=True))[1]
    cut = (digits > 19).double()
    n = (d.square().sum(-1, keepdim=True) + channels**3 * eps / input_scale**2).sqrt()
    n = n.clamp(min=1) / torch.exp2((digits - 19).clamp(min=0).double())
    gain = gamma.double().abs() / output_scale * channels**0.5
    root = y.abs() * (1 / (32 * n) + 1 / (4 * n.square()))
    kept = cut * (y.abs() * (1 + channels**0.5) / 2**20 + gain / (2 * n))
    return 0.5 + root + kept + gain / 2**28 + 2.0**-20


def layer_norm_errors(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-5,
    input_scale: float = 1e-3,
    output_scale: float = 1 / 32,
    levels: tuple[int, int] = (-128, 127),
) -> Tensor:
    """Those of all outputs, each held against the bound."""
    constants = LayerNormConstants.of(gamma, beta, eps, input_scale, output_scale)
    result = guarded(layer_norm, x, constants, *levels)
    assert (result.dtype, result.shape) == (torch.int64, x.shape)
    y = layer_norm_reference(x, gamma, eps, input_scale, output_scale)
    exact = (y + beta.double() / output_scale).clamp(*levels)
    error = (result - exact).abs()
    y = y.abs().clamp(max=max(-levels[0], levels[1]) + float(beta.abs().max()) / output_scale)
    assert bool((error <= error_bound(x, y, gamma, eps, input_scale, output_scale)).all())
    return error


def rows(channels: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """(9, channels): over the whole range, narrow, with outliers, of extremes, nearly constant."""
    info = torch.iinfo(dtype)
    shape = (3, channels)
    full = integers(shape, info.min, info.max, torch.int64, seed)
    narrow = integers(shape, -40, 40, torch.int64, seed + 1)
    outlier = narrow[0].clone()
    outlier[channels // 2] = info.min
    outliers = narrow[1].clone()
    outliers[0], outliers[-1] = info.min, info.max
    extremes = torch.where(narrow[2] < 0, info.min, info.max)
    balanced = torch.where(torch.arange(channels) % 2 == 0, info.min, info.max)  # the largest n
    all_rows = torch.cat([full, narrow[:2], torch.stack([outlier, outliers, extremes, balanced])])
    return all_rows.clamp(info.min, info.max).to(dtype)


def affine(channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gammas of both signs, some zero, some tiny; betas."""
    generator = torch.Generator().manual_seed(seed)
    gamma = torch.randn(channels, generator=generator)
    gamma[::7], gamma[3::7] = 0, 1e-9
    return gamma, torch.randn(channels, generator=generator)


CHANNELS = [2, 3, 16, 176, 512, 4096]
DTYPES = [torch.int8, torch.int16, torch.int32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_layer_norm_is_within_its_error(channels: int, dtype: torch.dtype) -> None:
    x = rows(channels, dtype)
    for gamma, beta in [affine(channels), (torch.ones(channels), torch.zeros(channels))]:
        assert float(layer_norm_errors(x, gamma, beta).max()) < 0.51


@pytest.mark.parametrize("channels", CHANNELS)
def test_layer_norm_on_a_fine_output_scale(channels: int) -> None:
    gamma, beta = affine(channels)
    x = rows(channels, torch.int32)
    layer_norm_errors(x, gamma, 100 * beta, output_scale=1e-3, levels=(-(2**20), 2**20))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 256, 4096])
@pytest.mark.parametrize("size", [20, 36, 49])
def test_layer_norm_where_eps_matters(channels: int, dtype: torch.dtype, size: int) -> None:
    """channels^3 eps is 2^size squared steps, and rows vary by about as much, half, a quarter."""
    width = int((2.0**size / channels**3) ** 0.5) + 1
    width = min(width, torch.iinfo(dtype).max)
    spreads = [width, width // 2 + 1, width // 4 + 1]
    x = torch.stack([integers((channels,), -w, w, dtype, w) for w in spreads])
    gamma, beta = affine(channels)
    eps, input_scale = 1e-5, (1e-5 * channels**3 / 2**size) ** 0.5
    errors = layer_norm_errors(x, gamma, beta, eps=eps, input_scale=input_scale)
    assert float(errors.max()) < 0.51


@pytest.mark.parametrize("eps", [0.0, 1e-7, 1e-5])
@pytest.mark.parametrize("channels", [2, 3, 16, 176, 512, 4096])
def test_layer_norm_of_nearly_constant_rows(channels: int, eps: float) -> None:
    """The coarsest rows that are: a wider bound, and half a step again from n = 512 on."""
    x = torch.zeros(4, channels, dtype=torch.int32)
    x[0, 0], x[1, -1], x[2, ::2], x[3, :] = 1, -1, 1, INT32_MIN
    x[3, channels // 2] += 1
    gamma, beta = affine(channels)
    errors = layer_norm_errors(x, gamma, beta, eps=eps, output_scale=1 / 16)
    assert channels < 512 or float(errors.max()) < 0.51


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("channels", [1, 2, 176, 4096])
def test_layer_norm_of_constant_rows_is_beta(channels: int, eps: float) -> None:
    values = torch.tensor([INT32_MIN, -1, 0, 1, INT32_MAX], dtype=torch.int32)
    gamma, beta = affine(channels)
    constants = LayerNormConstants.of(gamma, 4 * beta, eps, 1e-3, 1 / 32)
    result = guarded(layer_norm, values[:, None].expand(-1, channels), constants, -128, 127)
    expected = torch.floor(4 * beta.double() * 32 + 0.5).clamp(-128, 127).long()
    assert torch.equal(result, expected.expand(5, -1))


def test_layer_norm_treats_each_row_alone() -> None:
    x = rows(176, torch.int32)
    constants = LayerNormConstants.of(*affine(176), 1e-5, 1e-3, 1 / 32)
    batch = guarded(layer_norm, x.view(3, 3, -1), constants, -128, 127).view(9, -1)
    for row, expected in zip(x, batch, strict=True):
        assert torch.equal(guarded(layer_norm, row, constants, -128, 127), expected)


@reproducible
@given(
    st.lists(
        st.integers(INT32_MIN, INT32_MAX) | st.sampled_from([INT32_MIN, INT32_MAX]),
        min_size=2,
        max_size=40,
    ),
    st.floats(-2.0, 2.0),
    st.floats(-1e6, 1e6),
)
@example([INT32_MIN, INT32_MAX], 2.0, 0.0)
@example([INT32_MIN] + [INT32_MAX] * 39, -2.0, 1e6)
def test_layer_norm_of_any_row(row: list[int], gamma: float, beta: float) -> None:
    x = torch.tensor(row, dtype=torch.int32)
    ones = torch.ones(len(row), dtype=torch.float64)
    layer_norm_errors(x, gamma * ones, beta * ones, levels=(-(2**30), 2**30))


@reproducible
@given(
    st.floats(-1e9, 1e9),
    st.floats(-1e12, 1e12),
    st.sampled_from([1, 2, 256, 4096]),
    st.floats(1e-3, 10.0),
)
@example(1.0, 0.0, 4096, 1e-3)
@example(0.0, 0.0, 2, 1.0)
@example(1e-30, 1e12, 2, 1e-3)
def test_layer_norm_constants_leave_room_in_int64(
    gamma: float, beta: float, channels: int, output_scale: float
) -> None:
    ones = torch.ones(channels, dtype=torch.float64)
    constants = LayerNormConstants.of(gamma * ones, beta * ones, 1e-5, 1e-3, output_scale)
    m, e, offset = int(constants.m[0]), int(constants.e[0]), int(constants.offset[0])
    assert constants.m.dtype == torch.int32
    assert 1 <= e <= 60
    assert 2**30 * abs(m) + abs(offset) + 2 ** (e - 1) < 2**63
    half, exact = Fraction(1, 2 ** (e + 1)), Fraction(beta) / Fraction(output_scale)
    assert abs(Fraction(offset, 2**e) - exact) <= half + abs(exact) / 2**51
    gain = Fraction(gamma * channels**0.5) / Fraction(output_scale) / 2**30
    assert abs(Fraction(m, 2**e) - gain) <= half + abs(gain) / 2**50


@pytest.mark.parametrize(
    ("channels", "gamma", "beta", "input_scale", "output_scale", "message"),
    [
        (4097, 1.0, 0.0, 1e-3, 0.03, "4097 channels"),
        (256, 1.0, 0.0, 1e-3, 1e-20, "output scale"),
        (256, 1.0, 1e17, 1e-3, 0.03, "output scale"),
        (256, 1.0, 0.0, 2.7e-7, 0.03, "input scale"),
    ],
)
def test_layer_norm_out_of_reach(
    channels: int, gamma: float, beta: float, input_scale: float, output_scale: float, message: str
) -> None:
    ones = torch.ones(channels)
    with pytest.raises(LoweringError, match=message):
        LayerNormConstants.of(gamma * ones, beta * ones, 1e-5, input_scale, output_scale)
