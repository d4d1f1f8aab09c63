"""The grid of a convolution's weights: symmetric, with a step for every output channel."""

import torch
from torch import Tensor

from zqlib.quantization.scheme import QuantScheme

__all__ = ["nearest", "weight_scale"]

_FACTORS = torch.linspace(1.0, 0.3, 71, dtype=torch.float64)  # of the largest |w|


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
    errors = [
        (nearest(rows, scale * factor, scheme.weight_bits) - rows).square().sum(1)
        for factor in _FACTORS
    ]
    return scale * _FACTORS[torch.stack(errors).argmin(0)]


def nearest(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Weights (..., inputs) rounded to multiples of a scale (...), clipped at the grid's ends."""
    limit = 2 ** (bits - 1) - 1
    step = scale.masked_fill(scale == 0, 1.0)[..., None]
    return torch.round(weight / step).clamp(-limit, limit) * step
