"""The written-out moments and their gradient are those of torch."""

import pytest
import torch

from zqlib.batch_statistics import Moments


@pytest.mark.parametrize("lengths", [[30, 30, 30], [30, 1, 17]])
def test_moments_and_their_gradient_are_torchs(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 1, 30, generator=generator).contiguous(memory_format=torch.channels_last)
    factors = torch.randn(2, 5, generator=generator)
    found = []
    for moments in (Moments.apply, plain_moments):
        leaf = x.clone().requires_grad_()
        mean, variance = moments(leaf, torch.tensor(lengths))
        (factors * torch.stack([mean, variance])).sum().backward()
        found.append((mean.detach(), variance.detach(), leaf.grad))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def plain_moments(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    valid = [row[:, 0, :length] for row, length in zip(x, lengths, strict=True)]
    variance, mean = torch.var_mean(torch.cat(valid, dim=1), dim=1, correction=0)
    return mean, variance
