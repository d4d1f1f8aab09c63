"""Terms that a synthesis may add to its objective, beside the statistics of BatchNorm.

Each is what trained models make of speech, though no BatchNorm says so: log-mels change slowly, a
CTC model is sure of nearly every frame, and each channel of a LayerNorm varies over time.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from zqlib.batch_statistics import normal_divergence
from zqlib.errors import InputError
from zqlib.models.layers import valid_frames

__all__ = ["LayerNormInputs", "output_entropy", "roughness"]

_EPS = 1e-3  # as of the BatchNorms of QuartzNet; without, a constant channel is infinitely far


def roughness(features: Tensor, lengths: Tensor) -> Tensor:
    """Mean square of the step from one valid frame to the next.

    Args:
        features: (batch, n_mels, frames).
        lengths: (batch,) int64, at least 2.
    """
    later = valid_frames(features.shape[2], lengths)[:, 1:]
    squares: Tensor = features.diff(dim=2).square().mean(1)
    return squares[later].mean()


def output_entropy(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Mean entropy of the valid frames' distributions over tokens, in nats.

    Args:
        log_probs: (batch, frames, classes).
        lengths: (batch,) int64.
    """
    valid = log_probs[valid_frames(log_probs.shape[1], lengths)].float()
    return -(valid.exp() * valid).sum(1).mean()


class LayerNormInputs:
    """Within a `with` block, what every LayerNorm of a network received in the last forward pass.

    A LayerNorm stores no statistics. But its weight and bias are the deviation and the mean of
    each channel of its output, if before them each has mean 0 and deviation 1 over time, as a
    BatchNorm would see to; how far from that they are can be lowered without any data.

    Raises:
        InputError: the network has no LayerNorm.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
        if not self._norms:
            raise InputError("The model has no LayerNorm; leave out the synthesis' layer_norm.")
        self._inputs: dict[nn.Module, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        def hook(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            self._inputs[norm] = inputs[0]

        self._handles = [norm.register_forward_pre_hook(hook) for norm in self._norms]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def divergence(self, lengths: Tensor) -> Tensor:
        """The divergence of N(0, 1) from each channel over time, summed over layers.

        Args:
            lengths: (batch,) int64, of what the LayerNorms read.
        """
        total = torch.zeros((), device=lengths.device)
        for norm in self._norms:
            x = self._inputs[norm].float()
            x = functional.layer_norm(x, x.shape[2:], eps=norm.eps)
            x = x[valid_frames(x.shape[1], lengths)]
            variance, mean = torch.var_mean(x, dim=0, correction=0)
            target = torch.full_like(variance, 1 + _EPS)
            total = total + normal_divergence(torch.zeros_like(mean), target, mean, variance + _EPS)
        return total
