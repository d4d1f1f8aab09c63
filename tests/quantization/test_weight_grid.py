"""Steps of weights: the least squared error among those that clip."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import reproducible

from zqlib.integer.packing import group_multipliers
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import nearest, sub_scales, weight_scale


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squared_error(weight: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
    rows = weight.double().flatten(1)
    rounded = nearest(rows, weight_scale(weight, scheme)[:, None], scheme.weight_bits)
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
    assert not nearest(weight.double(), scale[:, None], 4)[1].any()


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_sub_scales_give_int8_products(bits: int, method: Any) -> None:
    weight = normal(6, 5, 3)
    scheme = QuantScheme(bits, weight_range_method=method)
    scale, multiples = sub_scales(weight, scheme, 4)
    step = scale[:, None] * multiples
    products = nearest(weight.double().flatten(1), step, bits) / scale[:, None]
    whole = products.round()
    assert torch.allclose(products, whole, atol=1e-9)
    assert whole.abs().max() <= 127
    # the rule of integer programs holds, for the last group of 3 weights too
    assert group_multipliers(whole.to(torch.int8), bits, 4).all()


def test_a_group_of_small_weights_gets_small_steps() -> None:
    weight = torch.tensor([[1.6, -0.4, 0.1, -0.05, 0.02]])
    scale, multiples = sub_scales(weight, QuantScheme(4), 2)
    assert multiples.tolist() == [[16, 16, 1, 1, 1]]
    assert scale * 16 * 7 == pytest.approx(1.6)


@reproducible
@given(st.integers(2, 7), st.integers(2, 20), st.integers(0, 2**16))
def test_mse_sub_scales_never_lose_to_minmax(bits: int, group_size: int, seed: int) -> None:
    weight = normal(7, 4, 9, seed=seed)

    def error(method: Any) -> float:
        scheme = QuantScheme(bits, weight_range_method=method)
        scale, multiples = sub_scales(weight, scheme, group_size)
        rows = weight.double().flatten(1)
        return float((nearest(rows, scale[:, None] * multiples, bits) - rows).square().sum())

    assert error("mse") <= error("minmax")


def test_sub_scales_of_a_channel_of_zeros() -> None:
    weight = normal(3, 8)
    weight[1] = 0
    scale, multiples = sub_scales(weight, QuantScheme(4), 4)
    assert scale[1] == 0 and torch.isfinite(multiples).all()
