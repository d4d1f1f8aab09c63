"""Activation ranges: from the values that calibration sees to one clipping value per tensor.

Everything is symmetric, so a range is the largest magnitude that is still represented. Two passes:
the first finds the extremes, the second, only where a method needs it, a histogram of |x| with
fixed edges; both are exact whatever the number and order of the batches. The authors' moving
average, which is not, is there to be compared with.
"""

import torch
from torch import Tensor

from zqlib.errors import InputError
from zqlib.quantization.scheme import QuantScheme

__all__ = ["Extremes", "Histogram", "MovingAverage", "clipping_value", "quantized_levels"]

_BINS = 8192
_EXACT_COUNT = 2**24  # histc counts in float32
_MOMENTUM = 0.95  # of the authors' moving average


def quantized_levels(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest quantized activation of `bits` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class Extremes:
    """Smallest and largest value of a tensor."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def observe(self, values: Tensor) -> None:
        """Take in values of any shape, float32.

        Raises:
            InputError: a value is not finite.
        """
        low, high = torch.aminmax(values)
        if not torch.isfinite(high - low):
            raise InputError("Calibration met a value that is not finite; check the features.")
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    @property
    def magnitude(self) -> float:
        """Largest |x|."""
        return max(-self.low, self.high)


class MovingAverage(Extremes):
    """The extremes as the authors' code has them: 0.95 of what was, 0.05 of the batch.

    It starts from the first batch, which after 20 still weighs 0.95^19 = 0.377.
    """

    def observe(self, values: Tensor) -> None:
        """See `Extremes.observe`."""
        batch = Extremes()
        batch.observe(values)
        if self.low > self.high:  # the first
            self.low, self.high = batch.low, batch.high
        else:
            self.low += (1 - _MOMENTUM) * (batch.low - self.low)
            self.high += (1 - _MOMENTUM) * (batch.high - self.high)


class Histogram:
    """Counts of |x| in equal bins up to a known largest magnitude."""

    def __init__(self, magnitude: float) -> None:
        self.magnitude = magnitude
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def observe(self, values: Tensor) -> None:
        """Take in values of any shape, float32."""
        for part in torch.split(values.abs().flatten(), _EXACT_COUNT):
            counts = torch.histc(part, bins=_BINS, min=0, max=self.magnitude)
            self.counts += counts.cpu().double()

    def percentile(self, percent: float) -> float:
        """The magnitude below which `percent` % of the values lie, to one bin."""
        cumulative = self.counts.cumsum(0)
        target = cumulative[-1] * (percent / 100)
        index = int(torch.searchsorted(cumulative, target))
        return self.magnitude * min(index + 1, _BINS) / _BINS

    def least_squares(self, levels: int, offset: float = 0.0) -> float:
        """The clipping value with the least mean squared error of rounding and clipping.

        Args:
            levels: number of steps from -offset to the clipping value.
            offset: how far the range reaches below zero, beside a sign.
        """
        width = self.magnitude / _BINS
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * width
        candidates = torch.linspace(0.02, 1.0, 197, dtype=torch.float64) * self.magnitude
        best = (float("inf"), self.magnitude)
        for clip in candidates.tolist():
            scale = (clip + offset) / levels
            most = round(clip / scale)
            error = centres - torch.round(centres / scale).clamp(max=most) * scale
            best = min(best, (float((self.counts * error.square()).sum()), clip))
        return best[1]


def clipping_value(
    scheme: QuantScheme, levels: int, histogram: Histogram, offset: float = 0.0
) -> float:
    """The largest magnitude that the scheme represents for a tensor.

    Args:
        scheme: names the method.
        levels: largest quantized value of the tensor.
        histogram: what calibration observed.
        offset: how far below zero the smallest quantized value lies, where that is 0.

    Raises:
        InputError: the tensor was zero throughout calibration.
    """
    if histogram.magnitude <= 0:
        raise InputError("An activation is zero for all calibration data; calibrate on other data.")
    if scheme.range_method == "percentile":
        return histogram.percentile(scheme.percentile)
    if scheme.range_method == "mse":
        return histogram.least_squares(levels, offset)
    return histogram.magnitude
