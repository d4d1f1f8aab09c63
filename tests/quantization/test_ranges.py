"""Range estimators against numpy on the samples themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import reproducible
from torch import Tensor

from zqlib.errors import InputError
from zqlib.quantization.ranges import (
    Extremes,
    Histogram,
    MovingAverage,
    clipping_value,
    quantized_levels,
)
from zqlib.quantization.scheme import QuantScheme, RangeMethod

BINS = 8192


def samples(seed: int = 0, count: int = 20_000) -> Tensor:
    """Normal with heavy tails, as activations are."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_t(4, count).astype(np.float32))


def observed(*batches: Tensor) -> Histogram:
    extremes = Extremes()
    for batch in batches:
        extremes.observe(batch)
    histogram = Histogram(extremes.magnitude)
    for batch in batches:
        histogram.observe(batch)
    return histogram


@pytest.mark.parametrize(
    ("bits", "signed", "levels"),
    [(8, True, (-128, 127)), (8, False, (0, 255)), (2, True, (-2, 1)), (2, False, (0, 3))],
)
def test_levels(bits: int, signed: bool, levels: tuple[int, int]) -> None:
    assert quantized_levels(bits, signed) == levels


def test_extremes_over_batches() -> None:
    extremes = Extremes()
    for batch in (torch.tensor([1.0, -3.5]), torch.tensor([[2.0], [0.5]])):
        extremes.observe(batch)
    assert (extremes.low, extremes.high, extremes.magnitude) == (-3.5, 2.0, 3.5)


def test_a_moving_average_keeps_to_the_first_batch() -> None:
    average = MovingAverage()
    average.observe(torch.tensor([-1.0, 4.0]))
    assert (average.low, average.high) == (-1.0, 4.0)
    for _ in range(19):
        average.observe(torch.tensor([-2.0, 0.0]))
    first = 0.95**19
    assert average.high == pytest.approx(4 * first)
    assert average.low == pytest.approx(-1 * first - 2 * (1 - first))
    with pytest.raises(InputError, match="not finite"):
        average.observe(torch.tensor([float("nan")]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        Extremes().observe(torch.tensor([1.0, bad, 2.0]))


@reproducible
@given(seed=st.integers(0, 2**31), percent=st.floats(51, 100))
def test_percentile_equals_numpy_to_one_bin(seed: int, percent: float) -> None:
    x = samples(seed, 3000)
    histogram = observed(x)
    exact = np.percentile(x.abs().double().numpy(), percent, method="inverted_cdf")
    width = histogram.magnitude / BINS
    assert exact - 1e-9 <= histogram.percentile(percent) * (1 + 1e-6)
    assert histogram.percentile(percent) <= (exact + width) * (1 + 1e-6)


@pytest.mark.parametrize("levels", [1, 3, 7, 15, 127, 255])
def test_least_squares_is_as_good_as_numpy_can_find(levels: int) -> None:
    x = samples()
    magnitudes = x.abs().double().numpy()

    def squared_error(clip: float) -> float:
        scale = clip / levels
        quantized = np.minimum(np.round(magnitudes / scale), levels) * scale
        return float(np.mean((magnitudes - quantized) ** 2))

    clip = observed(x).least_squares(levels)
    best = min(squared_error(c) for c in np.linspace(0.01, 1, 300) * magnitudes.max())
    assert squared_error(clip) <= 1.01 * best
    if levels <= 15:  # few levels: clipping the tail pays
        assert squared_error(clip) < 0.9 * squared_error(magnitudes.max())


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@reproducible
@given(seed=st.integers(0, 2**31), pieces=st.integers(1, 5))
def test_order_and_batching_do_not_matter(method: RangeMethod, seed: int, pieces: int) -> None:
    scheme = QuantScheme(range_method=method, percentile=99.0)
    x = samples(seed, 500)
    whole = clipping_value(scheme, 127, observed(x))
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    assert clipping_value(scheme, 127, observed(*shuffled.chunk(pieces))) == whole


def test_methods_are_ordered_as_they_must_be() -> None:
    histogram = observed(samples())
    values = {
        method: clipping_value(QuantScheme(range_method=method, percentile=99.9), 127, histogram)
        for method in ("minmax", "percentile", "mse")
    }
    assert values["minmax"] == histogram.magnitude
    assert 0 < values["percentile"] < values["minmax"]
    assert 0 < values["mse"] < values["minmax"]


def test_histogram_counts_beyond_float32_integers() -> None:
    """2^24 + 4 equal values: float32, which stops counting at 2^24, would lose some."""
    histogram = Histogram(2.0)
    histogram.observe(torch.ones(1).expand(2**24 + 4))
    assert histogram.counts.sum() == 2**24 + 4


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_zero_tensor_is_refused(method: RangeMethod) -> None:
    with pytest.raises(InputError, match="zero for all calibration data"):
        clipping_value(QuantScheme(range_method=method), 127, observed(torch.zeros(5)))
