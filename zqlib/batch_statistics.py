"""Mean and variance of a batch at the input of every BatchNorm, and their distance from its own."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from zqlib.errors import InputError
from zqlib.models.layers import BatchNorm, masked

__all__ = ["BatchStatistics", "Moments", "Statistics", "distance", "divergence",
           "layer_statistics", "normal_divergence", "pooled"]  # fmt: skip

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance per channel, by the name of a layer."""


class BatchStatistics:
    """Within a `with` block, what every BatchNorm of a network receives, as mean and variance.

    Attributes:
        norms: every BatchNorm, by module name.
        values: mean and variance per channel, over the valid frames of the last forward pass.

    Raises:
        InputError: the network has no BatchNorm.
    """

    def __init__(self, network: nn.Module) -> None:
        self.norms = {n: m for n, m in network.named_modules() if isinstance(m, BatchNorm)}
        if not self.norms:
            raise InputError("The model has no BatchNorm, so it holds no statistics to match.")
        self.values: Statistics = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, norm in self.norms.items():

            def hook(_: nn.Module, inputs: tuple[Tensor, Tensor], name: str = name) -> None:
                self.values[name] = Moments.apply(*inputs)  # type: ignore[no-untyped-call]

            self._handles.append(norm.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class Moments(torch.autograd.Function):
    """Mean and biased variance per channel of (batch, channels, 1, frames), valid frames only.

    Written out, because `torch.var_mean` over these axes takes ten times as long on a CPU, and the
    gradient of both together is one product and one sum per element.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Of x, and lengths (batch,): two of (channels,) float32."""
        ctx.count = int(lengths.sum())
        mean = masked(x, lengths).sum((0, 2, 3), dtype=torch.float32) / ctx.count
        centred = masked(x - mean[:, None, None], lengths)
        ctx.save_for_backward(x, lengths, mean)
        return mean, centred.square_().sum((0, 2, 3)) / ctx.count

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        x, lengths, mean = ctx.saved_tensors
        factor = 2 * by_variance / ctx.count
        offset = by_mean / ctx.count - factor * mean
        return masked(torch.addcmul(offset[:, None, None], x, factor[:, None, None]), lengths), None


def divergence(norm: BatchNorm, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Mean over channels of KL( N(mu_bn, sigma_bn) || N(mu_batch, sigma_batch) )."""
    assert norm.running_mean is not None and norm.running_var is not None
    return normal_divergence(norm.running_mean, norm.running_var + eps, mean, variance + eps)


def normal_divergence(
    target_mean: Tensor, target_variance: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Mean over channels of KL( N(target) || N(found) ); all (channels,)."""
    spread = target_variance + (target_mean - mean).square()
    return (0.5 * torch.log(variance / target_variance) + spread / (2 * variance) - 0.5).mean()


def distance(norm: BatchNorm, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Mean over channels of the squared differences of mean and deviation (ZeroQ's objective)."""
    assert norm.running_mean is not None and norm.running_var is not None
    deviations = torch.sqrt(norm.running_var + eps) - torch.sqrt(variance + eps)
    return ((norm.running_mean - mean).square() + deviations.square()).mean()


def pooled(earlier: Statistics, later: Statistics, share: float) -> Statistics:
    """Statistics of two sets together, a `share` of whose frames is later; none may be earlier."""
    if not earlier:
        return later
    result = {}
    for name, (mean, variance) in later.items():
        mean_before, variance_before = earlier[name]
        between = share * (1 - share) * (mean - mean_before).square()
        variance = torch.lerp(variance_before, variance, share) + between
        result[name] = torch.lerp(mean_before, mean, share), variance
    return result


def layer_statistics(network: nn.Module, features: Tensor, lengths: Tensor) -> Statistics:
    """Mean and variance per channel at the input of every BatchNorm, by module name."""
    with torch.no_grad(), BatchStatistics(network) as statistics:
        network(features, lengths)
    return statistics.values
