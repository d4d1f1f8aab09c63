"""Roundings that see the inputs: on the grid, and the products lose less than to the nearest."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import reproducible
from torch import Tensor

from zqlib.quantization.adaround import learned_rounding
from zqlib.quantization.gptq import second_order_rounding
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import nearest, weight_scale

Rounding = Callable[[Tensor, Tensor, Tensor, int], Tensor]

GROUPS, ROWS, INPUTS = 2, 6, 24

both = pytest.mark.parametrize("rounding", [second_order_rounding, learned_rounding])


def example(
    correlation: float, inputs: int = INPUTS, bits: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs (groups, inputs, places) that share a part, and the step of each row."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(GROUPS, ROWS, inputs, generator=generator).double()
    x = torch.randn(GROUPS, inputs, 500, generator=generator).double()
    shared = torch.randn(GROUPS, 1, 500, generator=generator).double()
    scale = weight_scale(weight.flatten(0, 1), QuantScheme(bits)).view(GROUPS, ROWS, 1)
    return weight, x + correlation * shared, scale


def error(weight: Tensor, rounded: Tensor, x: Tensor) -> float:
    return float(((weight - rounded) @ x).square().mean())


@both
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_multiples_within_the_ends(rounding: Rounding, bits: int) -> None:
    weight, x, scale = example(1.0, bits=bits)
    steps = rounding(1.5 * weight, x @ x.mT, scale, bits) / scale
    assert torch.allclose(steps, steps.round(), atol=1e-9)
    assert steps.abs().max() <= 2 ** (bits - 1) - 1 + 1e-9


@both
def test_correlated_inputs_lose_much_less(rounding: Rounding) -> None:
    weight, x, scale = example(5.0)
    rounded = rounding(weight, x @ x.mT, scale, 4)
    assert error(weight, rounded, x) < 0.4 * error(weight, nearest(weight, scale, 4), x)


@both
def test_inputs_without_correlation_get_the_nearest_level(rounding: Rounding) -> None:
    weight, _, scale = example(0.0)
    moments = torch.eye(INPUTS).double().expand(GROUPS, -1, -1)
    rounded = rounding(weight, moments, scale, 4)
    assert torch.equal(rounded, nearest(weight, scale, 4))


@both
def test_every_group_is_rounded_alone(rounding: Rounding) -> None:
    weight, x, scale = example(1.0)
    together = rounding(weight, x @ x.mT, scale, 4)
    for group in range(GROUPS):
        only = slice(group, group + 1)
        alone = rounding(weight[only], x[only] @ x[only].mT, scale[only], 4)
        assert torch.allclose(together[only], alone)


@both
def test_fewer_places_than_inputs_and_inputs_and_rows_of_zero(rounding: Rounding) -> None:
    weight, x, scale = example(1.0)
    weight[0, 2], scale[0, 2] = 0, 0
    few = x[:, :, :3].clone()
    few[0, 5], few[1] = 0, 0
    rounded = rounding(weight, few @ few.mT, scale, 4)
    plain = nearest(weight, scale, 4)
    assert error(weight[:1], rounded[:1], few[:1]) < 0.4 * error(weight[:1], plain[:1], few[:1])
    assert torch.equal(rounded[0, 2], plain[0, 2])
    assert torch.equal(rounded[0, :, 5], plain[0, :, 5])
    assert torch.equal(rounded[1], plain[1])


@reproducible
@given(
    st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 8), st.floats(0, 10), st.booleans()
)
def test_learned_levels_are_neighbours_and_never_worse_than_the_nearest(
    seed: int, inputs: int, bits: int, correlation: float, sub_scales: bool
) -> None:
    weight, x, step = example(correlation, inputs, bits, seed)
    moments = x @ x.mT
    if sub_scales:
        generator = torch.Generator().manual_seed(seed)
        step = step * torch.randint(1, 5, weight.shape, generator=generator)
    learned, plain = learned_rounding(weight, moments, step, bits), nearest(weight, step, bits)
    assert ((learned - weight).abs() < (1 + 1e-6) * step).all()
    mean = moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    damped = moments + 0.1 * mean * torch.eye(inputs)

    def losses(rounded: Tensor) -> Tensor:
        return (((weight - rounded) @ damped) * (weight - rounded)).sum(2)

    assert (losses(learned) <= losses(plain) * (1 + 1e-4)).all()
    assert torch.equal(learned, learned_rounding(weight, moments, step, bits))
