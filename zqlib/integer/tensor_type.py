"""What a tensor of an integer program can hold."""

from dataclasses import dataclass

import torch

from zqlib.errors import LoweringError

__all__ = ["ACCUMULATOR", "TensorType"]

_CONTAINERS = {
    torch.int8: (-(2**7), 2**7 - 1),
    torch.uint8: (0, 2**8 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True)
class TensorType:
    """What a tensor can hold.

    Attributes:
        channels: number of channels.
        dtype: the container: torch.int8, torch.uint8 or torch.int32.
        low, high: values are within [low, high], which may be tighter than the container.
    """

    channels: int
    dtype: torch.dtype
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.dtype not in _CONTAINERS:
            raise LoweringError(f"A program tensor cannot be held in {self.dtype}.")
        low, high = _CONTAINERS[self.dtype]
        integers = all(type(value) is int for value in (self.channels, self.low, self.high))
        if not integers or not (low <= self.low <= 0 <= self.high <= high) or self.channels < 1:
            raise LoweringError(f"The tensor type {self} does not fit its container.")

    @property
    def magnitude(self) -> int:
        """Largest absolute value."""
        return max(-self.low, self.high)


def ACCUMULATOR(channels: int) -> TensorType:  # noqa: N802 - reads as the constant that it is
    """The type of a convolution's result: any int32."""
    return TensorType(channels, torch.int32, *_CONTAINERS[torch.int32])
