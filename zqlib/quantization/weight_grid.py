"""The grid of a convolution's weights: symmetric, with a step for every output channel.

Below 8 bits, groups of a channel's weights can have a grid of their own, an integer multiple of the
channel's: an integer of few bits times a small integer is what int8 kernels multiply with.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from zqlib.integer.packing import largest_multiplier
from zqlib.quantization.nodes import FloatConv, FloatConv2d
from zqlib.quantization.patches import weight_rows
from zqlib.quantization.scheme import QuantScheme

__all__ = ["layer_bits", "nearest", "on_grid", "sub_scales", "weight_scale", "with_steps"]

_FACTORS = torch.linspace(1.0, 0.3, 71, dtype=torch.float64)  # of the largest |w|
_SLACK = 1e-9  # the largest |w| of a channel is, but for rounding, the largest multiple's


def layer_bits(conv: FloatConv | FloatConv2d, scheme: QuantScheme) -> int:
    """The bits of a layer's weights: its own, or the scheme's."""
    return scheme.weight_bits if conv.weight_bits is None else conv.weight_bits


def weight_scale(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """The step of each output channel's weights.

    Args:
        weight: (out, ...) float32.
        scheme: bits and `weight_range_method`.

    Returns:
        (out,) float64, 0 for a channel of zeros.
    """
    rows = weight.double().flatten(1)
    scale: Tensor = rows.abs().amax(1) / (2 ** (scheme.weight_bits - 1) - 1)
    if scheme.weight_range_method == "minmax":
        return scale
    factors = _FACTORS.to(scale.device)
    errors = [
        (nearest(rows, (scale * factor)[:, None], scheme.weight_bits) - rows).square().sum(1)
        for factor in factors
    ]
    return scale * factors[torch.stack(errors).argmin(0)]


def sub_scales(weight: Tensor, scheme: QuantScheme, group_size: int) -> tuple[Tensor, Tensor]:
    """The step of each output channel's weights, and the multiples of it that groups of them take.

    A group's multiple is the smallest that clips nothing (`minmax`), or the one with the least
    squared error (`mse`).

    Args:
        weight: (out, ...) float32.
        scheme: bits and `weight_range_method`.
        group_size: weights of an output that share a multiple.

    Returns:
        (out,) float64, 0 for a channel of zeros; and (out, inputs) float64, whole numbers above 0.
    """
    bits, rows = scheme.weight_bits, weight.double().flatten(1)
    limit, largest = 2 ** (bits - 1) - 1, largest_multiplier(bits)
    scale = rows.abs().amax(1) / (largest * limit)
    groups = functional.pad(rows, (0, -rows.shape[1] % group_size))
    groups = groups.view(len(rows), -1, group_size)
    if scheme.weight_range_method == "minmax":
        needed = groups.abs().amax(2) / (limit * scale.masked_fill(scale == 0, 1.0)[:, None])
        multiples = (needed - _SLACK).ceil().clamp(1, largest)
    else:
        errors = [
            (nearest(groups, (scale * factor)[:, None, None], bits) - groups).square().sum(2)
            for factor in range(1, largest + 1)
        ]
        multiples = torch.stack(errors).argmin(0).double() + 1
    return scale, multiples.repeat_interleave(group_size, 1)[:, : rows.shape[1]]


def with_steps(
    conv: FloatConv | FloatConv2d, scheme: QuantScheme
) -> tuple[FloatConv | FloatConv2d, Tensor]:
    """A convolution with its bits, scale and groups, and the step of each of its weights.

    Returns:
        The convolution; and float64 that broadcasts to what `weight_rows` returns.
    """
    scheme = replace(scheme, weight_bits=layer_bits(conv, scheme))
    group_size = scheme.weight_group if scheme.weight_bits < 8 else None
    rows = weight_rows(conv)
    if group_size is None:
        scale = weight_scale(conv.weight, scheme)
        step = scale.view(*rows.shape[:2], 1)
    else:
        scale, multiples = sub_scales(conv.weight, scheme, group_size)
        step = (scale[:, None] * multiples).view(rows.shape)
    bits = scheme.weight_bits
    return replace(conv, weight_scale=scale, weight_bits=bits, group_size=group_size), step


def on_grid(conv: FloatConv | FloatConv2d, scheme: QuantScheme) -> FloatConv | FloatConv2d:
    """A convolution with each weight at the nearest level."""
    conv, step = with_steps(conv, scheme)
    grid = nearest(weight_rows(conv), step, layer_bits(conv, scheme))
    return replace(conv, weight=grid.view(conv.weight.shape).float())


def nearest(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """Weights rounded to multiples of a step, which broadcasts, and clipped at the grid's ends."""
    limit = 2 ** (bits - 1) - 1
    step = step.masked_fill(step == 0, 1.0)
    return torch.round(weight / step).clamp(-limit, limit) * step
