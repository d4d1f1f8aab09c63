"""Dyadic arithmetic: how a real multiplier becomes one integer product, one rounding, one shift.

A multiplier M is held as (m, e), M ~= m * 2^-e, with int32 m in [2^30, 2^31) or 0. Then

    round(acc * M) ~= (int64(acc) * m + 2^(e-1)) >> e

with an arithmetic shift, that is rounding half up (toward +infinity) of acc * m * 2^-e.
The relative error of m is at most 2^-31, so before its one rounding the product is off by at most
one output step per 2^31 of |acc * M|: for an 8-bit output, by nothing that can be seen.

Reference: Jacob et al., arXiv 1712.05877, section 2.2; Q-ASR (arXiv 2103.16827) calls it dyadic.
"""

import torch
from torch import Tensor

from zqlib.errors import LoweringError

__all__ = ["MAX_SHIFT", "dyadic", "requantize"]

MAX_SHIFT = 62
"""Largest e. |acc * m| < 2^62 and 2^(e-1) <= 2^61, so their sum stays within int64."""


def dyadic(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """Approximate real multipliers as m * 2^-e. Runs when a program is built, never in it.

    Args:
        multiplier: (channels,) float64, >= 0 and finite.

    Returns:
        m (channels,) int32 in [2^30, 2^31) or 0, and e (channels,) int8 in [1, 62]. A multiplier
        below 2^-32 becomes 0: no int32 accumulator could reach half an output step with it.

    Raises:
        LoweringError: a multiplier is negative, not finite, or 2^30 and above.
    """
    if not torch.isfinite(multiplier).all() or (multiplier < 0).any():
        raise LoweringError("A requantization multiplier is negative or not finite.")
    fraction, exponent = torch.frexp(multiplier.double())  # fraction in [0.5, 1), or 0
    m = torch.round(torch.ldexp(fraction, torch.tensor(31))).long()
    carried = m == 1 << 31  # rounding reached 1.0
    m = torch.where(carried, m >> 1, m)
    e = 31 - (exponent + carried)
    if (e < 1).any():
        raise LoweringError(
            f"The requantization multiplier {float(multiplier.max()):.3g} is too large; the output "
            "scale is far finer than the accumulator's."
        )
    vanishing = (e > MAX_SHIFT) | (m == 0)
    m, e = m.masked_fill(vanishing, 0), e.masked_fill(vanishing, 1)
    return m.to(torch.int32), e.to(torch.int8)


def requantize(accumulator: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """Round accumulator * m * 2^-e to the nearest integer, half up. Integers only.

    Args:
        accumulator: (..., channels) of any integer type that fits int32.
        m: (channels,) int32.
        e: (channels,) int8 in [1, 62].

    Returns:
        (..., channels) int64, not clamped.
    """
    shift = e.long()
    half = torch.ones_like(shift) << (shift - 1)
    product = accumulator.to(torch.int64, copy=True)
    return product.mul_(m).add_(half).bitwise_right_shift_(shift)
