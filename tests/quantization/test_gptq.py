"""Second-order rounding: on the grid, and the products lose less than to the nearest level."""

import pytest
import torch
from torch import Tensor

from zqlib.quantization.gptq import second_order_rounding
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import nearest, weight_scale

GROUPS, ROWS, INPUTS = 2, 6, 24


def example(correlation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs (groups, inputs, places) that share a part, and the step of each row."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(GROUPS, ROWS, INPUTS, generator=generator).double()
    x = torch.randn(GROUPS, INPUTS, 500, generator=generator).double()
    shared = torch.randn(GROUPS, 1, 500, generator=generator).double()
    scale = weight_scale(weight.flatten(0, 1), QuantScheme(4)).view(GROUPS, ROWS, 1)
    return weight, x + correlation * shared, scale


def error(weight: Tensor, rounded: Tensor, x: Tensor) -> float:
    return float(((weight - rounded) @ x).square().mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_multiples_within_the_ends(bits: int) -> None:
    weight, x, _ = example(1.0)
    scale = weight_scale(weight.flatten(0, 1), QuantScheme(bits)).view(GROUPS, ROWS, 1)
    steps = second_order_rounding(weight, x @ x.mT, scale, bits) / scale
    assert torch.allclose(steps, steps.round(), atol=1e-9)
    assert steps.abs().max() <= 2 ** (bits - 1) - 1 + 1e-9


def test_correlated_inputs_lose_much_less() -> None:
    weight, x, scale = example(5.0)
    rounded = second_order_rounding(weight, x @ x.mT, scale, 4)
    assert error(weight, rounded, x) < 0.4 * error(weight, nearest(weight, scale, 4), x)


def test_inputs_without_correlation_get_the_nearest_level() -> None:
    weight, _, scale = example(0.0)
    moments = torch.eye(INPUTS).double().expand(GROUPS, -1, -1)
    rounded = second_order_rounding(weight, moments, scale, 4)
    assert torch.equal(rounded, nearest(weight, scale, 4))


def test_every_group_is_rounded_alone() -> None:
    weight, x, scale = example(1.0)
    together = second_order_rounding(weight, x @ x.mT, scale, 4)
    for group in range(GROUPS):
        only = slice(group, group + 1)
        alone = second_order_rounding(weight[only], x[only] @ x[only].mT, scale[only], 4)
        assert torch.allclose(together[only], alone)


def test_fewer_places_than_inputs_and_inputs_of_zero() -> None:
    weight, x, scale = example(1.0)
    few = x[:, :, :3].clone()
    few[1] = 0
    rounded = second_order_rounding(weight, few @ few.mT, scale, 4)
    assert error(weight[:1], rounded[:1], few[:1]) < 0.4 * error(
        weight[:1], nearest(weight, scale, 4)[:1], few[:1]
    )
    assert torch.equal(rounded[1], nearest(weight, scale, 4)[1])
