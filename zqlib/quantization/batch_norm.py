"""Folds a BatchNorm into the convolution before it.

W' = W * gamma / sigma, b' = beta + (b - mu) * gamma / sigma. In evaluation mode a BatchNorm is an
affine map per channel, so the folded convolution computes the same function. sigma^2 is the stored
variance plus the layer's own eps.
"""

import torch
from torch import Tensor, nn

from zqlib.models.layers import BatchNorm

__all__ = ["fold_batch_norm"]


def fold_batch_norm(conv: nn.Conv1d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight (out, in / groups, taps) and bias (out,), computed in float64, float32."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = (conv.weight.detach().double() * gain[:, None, None]).float()
    shifted = -norm.running_mean.double()
    if conv.bias is not None:
        shifted = conv.bias.detach().double() + shifted
    return weight, (norm.bias.detach().double() + shifted * gain).float()
