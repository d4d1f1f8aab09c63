"""Steps of weights: the least squared error among those that clip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import reproducible

from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import nearest, weight_scale


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squared_error(weight: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
    rows = weight.double().flatten(1)
    rounded = nearest(rows, weight_scale(weight, scheme), scheme.weight_bits)
    return (rounded - rows).square().sum(1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_minmax_puts_the_largest_weight_on_the_last_level(bits: int) -> None:
    weight = normal(6, 5, 3)
    scale = weight_scale(weight, QuantScheme(bits))
    assert torch.allclose(scale * (2 ** (bits - 1) - 1), weight.abs().amax((1, 2)).double())


@reproducible
@given(st.integers(2, 8), st.integers(0, 2**16))
def test_mse_never_loses_to_minmax(bits: int, seed: int) -> None:
    weight = normal(7, 4, 9, seed=seed)
    least = squared_error(weight, QuantScheme(bits, weight_range_method="mse"))
    assert (least <= squared_error(weight, QuantScheme(bits))).all()


def test_mse_clips_an_outlier_of_few_bits() -> None:
    weight = normal(1, 1000)
    weight[0, 0] = 8.0
    errors = [
        float(squared_error(weight, QuantScheme(4, weight_range_method=m)))
        for m in ("minmax", "mse")
    ]
    assert errors[1] < 0.5 * errors[0]


def test_weights_on_the_grid_keep_it() -> None:
    step = torch.tensor([0.3, 0.01], dtype=torch.float64)
    weight = torch.arange(-7, 8).double() * step[:, None]
    scale = weight_scale(weight.float(), QuantScheme(4, weight_range_method="mse"))
    assert torch.allclose(scale, step)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_channel_of_zeros_has_no_step(method: str) -> None:
    weight = normal(3, 8)
    weight[1] = 0
    scale = weight_scale(weight, QuantScheme(4, weight_range_method=method))  # type: ignore[arg-type]
    assert (scale == 0).tolist() == [False, True, False]
    assert not nearest(weight.double(), scale, 4)[1].any()
