"""Layers that the model families share.

A sequence is (batch, channels, 1, frames) in channels-last memory order: on a CPU, torch runs a
depthwise Conv2d in that order about three times faster than the equivalent Conv1d.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BatchNorm", "masked", "masked_conv", "valid_frames"]


def valid_frames(frames: int, lengths: Tensor) -> Tensor:
    """(batch, frames) bool: which frames belong to an utterance."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def masked(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, channels, 1, frames) with 0 beyond each utterance's length; `x` if all are full."""
    if int(lengths.min()) == x.shape[3]:  # a product less, which costs as much as a BatchNorm
        return x
    return x * valid_frames(x.shape[3], lengths)[:, None, None, :]


def masked_conv(
    x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor | None,
    stride: int, padding: int, dilation: int, groups: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A one-dimensional convolution that reads 0 beyond each utterance's length.

    Args:
        x: (batch, in, 1, frames), best in channels-last order.
        lengths: (batch,) int64.
        weight: (out, in / groups, taps).
        bias: (out,) or None.
        stride, padding, dilation, groups: as in `conv1d`.

    Returns:
        (batch, out, 1, frames') and the new lengths.
    """
    x = functional.conv2d(
        masked(x, lengths), weight.unsqueeze(2), bias,
        (1, stride), (0, padding), (1, dilation), groups,
    )  # fmt: skip
    span = dilation * (weight.shape[2] - 1)
    return x, (lengths + 2 * padding - span - 1) // stride + 1


class BatchNorm(nn.BatchNorm1d):
    """`BatchNorm1d` over (batch, channels, 1, frames).

    Takes the lengths as well, for whoever observes its input to know the valid frames.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps=eps, momentum=0.1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept the extra axis; `batch_norm` itself takes any."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise; `lengths` (batch,) change nothing."""
        return super().forward(x)
