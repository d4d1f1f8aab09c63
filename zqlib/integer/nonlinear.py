"""Integer softmax, LayerNorm and element-wise functions: what a Conformer needs beside products.

Nothing here computes in floating point but `exponent_multiplier` and `LayerNormConstants.of`, which
run when a program is built. Worst errors are in steps of the output and are derived in the book's
chapter on integer arithmetic; the tests hold them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zqlib.errors import LoweringError
from zqlib.integer.arithmetic import MAX_SHIFT, dyadic, requantize

__all__ = [
    "MAX_CHANNELS",
    "MAX_EPS",
    "LayerNormConstants",
    "exp2",
    "exponent_multiplier",
    "integer_sqrt",
    "layer_norm",
    "logistic",
    "sigmoid",
    "softmax_weights",
    "swish",
]

_FRACTION_BITS = 16
"""Of the exponent in `exp2`: a relative error of 2^-17 ln 2 in the power."""

_LINEAR = 21840
"""2^t ~= 1 + b t + (1 - b) t^2 on [0, 1), with b = 21840 / 2^15.

Such a polynomial doubles from t = 0 to t = 1, so the powers stay monotonic. This b has the smallest
spread of relative errors, from -0.19 % to +0.34 %; what is common to all powers cancels in softmax.
"""

MAX_CHANNELS = 1 << 12
_POWER_BITS = 30
_DEVIATION_BITS = 19
_RATIO_BITS = 30
_ROOT_BITS = 5  # the root of a sum of squares is in steps of 2^-5
MAX_EPS = 1 << 50  # as much as 2^12 squares of 19 digits; together below 2^61 in steps of 2^-10


def exp2(x: Tensor) -> Tensor:
    """2^(x / 2^16) for x <= 0, in steps of 2^-30, up to a factor within [0.998, 1.0035].

    Args:
        x: int64, at most 0.

    Returns:
        int64 in [0, 2^30].
    """
    whole, fraction = x >> _FRACTION_BITS, x & ((1 << _FRACTION_BITS) - 1)
    # 1 + b t + (1 - b) t^2 in steps of 2^-31, for a t in steps of 2^-16
    linear = fraction * _LINEAR
    square = ((fraction * fraction) >> _FRACTION_BITS) * ((1 << 15) - _LINEAR)
    mantissa = (1 << 31) + linear + square
    return mantissa >> (1 - whole).clamp(max=MAX_SHIFT)


def exponent_multiplier(scale: float) -> tuple[Tensor, Tensor]:
    """The dyadic number that turns scores of a scale into exponents of `exp2`. For build time."""
    return dyadic(torch.tensor([scale / math.log(2) * 2**_FRACTION_BITS], dtype=torch.float64))


def softmax_weights(scores: Tensor, m: Tensor, e: Tensor, valid: Tensor) -> Tensor:
    """The numerators of a softmax over the last axis, the largest of each row brought to 255.

    exp(s (x - max)) is 2^z with z = (x - max) s / ln 2; range reduction by powers of two leaves a
    polynomial of degree 2 (the method of I-BERT, Kim et al. 2021, section 3.5, in base 2). Divided
    by their sum they would round to nothing in a row of many keys; so whoever takes a mean with
    them divides that.

    Args:
        scores: (..., keys) int32.
        m, e: (1,) from `exponent_multiplier`.
        valid: bool, broadcast against `scores`: which keys take part. At least one does in each
            row.

    Returns:
        (..., keys) uint8, within 1.23 of 255 exp(s (x - max)), 0 for keys that take no part.
    """
    lowest = torch.iinfo(torch.int32).min
    top = scores.masked_fill(~valid, lowest).amax(-1, keepdim=True)
    below = (scores.to(torch.int64) - top).clamp(min=lowest, max=0)
    powers = exp2(requantize(below, m, e)).masked_fill(~valid, 0)
    return ((powers * 255 + (1 << (_POWER_BITS - 1))) >> _POWER_BITS).to(torch.uint8)


def logistic(x: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """1 / (1 + exp(-s x)) in steps of 2^-30, within 0.09 % of one, by the powers of `exp2`.

    Args:
        x: integers that fit int32.
        m, e: (1,) from `exponent_multiplier`, of the scale s.

    Returns:
        int64 in [0, 2^30], of the shape of x; x and -x add to 2^30, but for one step.
    """
    one = 1 << _POWER_BITS
    power = exp2(requantize(-x.to(torch.int64).abs(), m, e))
    upper = (one << _POWER_BITS) // (one + power)
    return torch.where(x >= 0, upper, one - upper)


def sigmoid(x: Tensor, m: Tensor, e: Tensor, high: int) -> Tensor:
    """The logistic function in steps of 1 / high: within 0.72 of one at 255 levels; int64."""
    return (logistic(x, m, e) * high + (1 << (_POWER_BITS - 1))) >> _POWER_BITS


def swish(x: Tensor, exponent: tuple[Tensor, Tensor], gain: tuple[Tensor, Tensor]) -> Tensor:
    """x / (1 + exp(-s x)), within half a step and 0.0008 of the real unit.

    Args:
        x: integers of at most 17 bits, of scale s.
        exponent: (m, e) from `exponent_multiplier` of s.
        gain: the dyadic number of s * 2^-15 over the scale of the output.

    Returns:
        int64, not clamped.
    """
    return requantize((x * logistic(x, *exponent)) >> (_POWER_BITS - 15), *gain)


def integer_sqrt(x: Tensor) -> Tensor:
    """floor(sqrt(x)) by Newton's method, exact.

    Args:
        x: int64 in [0, 2^62).
    """
    bits = torch.zeros_like(x)  # number of binary digits, by bisection
    rest = x
    for step in (32, 16, 8, 4, 2, 1):
        large = rest >= 1 << step
        bits = bits + large * step
        rest = torch.where(large, rest >> step, rest)
    # From above, at most twice too large: six steps reach the floor or stay one above it.
    root = torch.ones_like(x) << ((bits >> 1) + 1)
    for _ in range(6):
        root = ((root + x // root) >> 1).clamp(min=1)
    return root - (root * root > x).to(torch.int64)


@dataclass(frozen=True, eq=False)
class LayerNormConstants:
    """gamma, beta and eps of a LayerNorm, in integers.

    Attributes:
        m: (channels,) int32, signed as gamma; m * 2^-e multiplies d / n in steps of 2^-30.
        e: (channels,) int8.
        offset: (channels,) int64: beta in steps of 2^-e of the output.
        eps: channels^3 * eps in squared steps of the input, see `layer_norm`.
    """

    m: Tensor
    e: Tensor
    offset: Tensor
    eps: int

    @classmethod
    def of(
        cls, gamma: Tensor, beta: Tensor, eps: float, input_scale: float, output_scale: float
    ) -> "LayerNormConstants":
        """From real constants; runs when a program is built.

        Args:
            gamma, beta: (channels,) float.
            eps: added to the variance.
            input_scale, output_scale: real value of one step.

        Raises:
            LoweringError: a value is not finite, a scale out of reach, or there are more than 4096
                channels.
        """
        if not all(torch.isfinite(x).all() for x in (gamma, beta)):
            raise LoweringError("A LayerNorm has a gamma or beta that is not finite.")
        if not (0 < input_scale < math.inf and 0 < output_scale < math.inf):
            raise LoweringError("A LayerNorm has a scale that is not positive and finite.")
        channels = gamma.shape[0]
        if channels > MAX_CHANNELS:
            raise LoweringError(f"A LayerNorm has {channels} channels, at most {MAX_CHANNELS}.")
        gain = gamma.double() * channels**0.5 / (output_scale * 2**_RATIO_BITS)
        steps = beta.double() / output_scale
        # As many digits as m has in int32, and as beta leaves: both are added before the shift.
        e = torch.minimum(30 - torch.frexp(gain)[1], 60 - torch.frexp(steps)[1]).clamp(max=60)
        if bool((e < 1).any()):
            raise LoweringError("A LayerNorm is out of reach of its output scale.")
        m, offset = torch.round(torch.ldexp(gain, e)), torch.round(torch.ldexp(steps, e))
        eps_q = round(eps * channels**3 / input_scale**2)
        if eps_q >= MAX_EPS:
            raise LoweringError("The eps of a LayerNorm is out of reach of its input scale.")
        return cls(m.to(torch.int32), e.to(torch.int8), offset.to(torch.int64), eps_q)


def layer_norm(x: Tensor, constants: LayerNormConstants, low: int, high: int) -> Tensor:
    """LayerNorm over the last axis, within 0.51 of a step, then a clamp.

    With d = channels * (x - mean), which is an integer, and n = sqrt(sum of d^2 + channels^3 eps),
    the normalised value is sqrt(channels) d / n. Of d the 19 leading binary digits of its row's
    largest are kept, so that squares and quotients fit int64; d / n has 30 binary digits.

    Args:
        x: (..., channels) int8, int16 or int32, up to 2^12 channels, on the constants' scale.
        constants: of the layer.
        low, high: range of the output.

    Returns:
        (..., channels) int64 within [low, high].
    """
    channels = x.shape[-1]
    deviation = x.to(torch.int64) * channels
    deviation -= x.to(torch.int64).sum(-1, keepdim=True)
    largest = deviation.abs().amax(-1, keepdim=True)
    shift = torch.zeros_like(largest)  # binary digits beyond those that are kept
    for step in (32, 16, 8, 4, 2, 1):
        excess = (largest >> shift) >= 1 << (_DEVIATION_BITS + step - 1)
        shift = shift + excess * step
    half = (torch.ones_like(shift) << shift) >> 1
    deviation = (deviation + half) >> shift
    eps = torch.full_like(shift, constants.eps) >> (2 * shift).clamp(max=MAX_SHIFT)
    total = (deviation.square().sum(-1, keepdim=True) + eps).clamp(min=1)  # 0: a constant row
    root = integer_sqrt(total << (2 * _ROOT_BITS))
    ratio = (deviation << (_RATIO_BITS + _ROOT_BITS)) // root
    e = constants.e.to(torch.int64)
    rounding = constants.offset + (torch.ones_like(e) << (e - 1))
    return ((ratio * constants.m + rounding) >> e).clamp(low, high)
