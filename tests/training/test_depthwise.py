"""The faster gradient is the gradient."""

import pytest
import torch
from torch.nn import functional

from zqlib.training.depthwise import FastDepthwiseGradient


@pytest.mark.parametrize("taps", [1, 5, 13])
def test_gradients_equal_autograds(taps: int) -> None:
    generator = torch.Generator()
    grown = []
    for mode in (False, True):
        generator.manual_seed(taps)
        x = torch.randn(3, 8, 1, 21, generator=generator)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(8, 1, 1, taps, generator=generator).requires_grad_()
        geometry = ((1, 1), (0, taps // 2), (1, 1))
        if mode:
            with FastDepthwiseGradient():
                out = functional.conv2d(x, weight, None, *geometry, 8)
            assert "Depthwise" in type(out.grad_fn).__name__
        else:
            out = functional.conv2d(x, weight, None, *geometry, 8)
        out.square().sum().backward()
        grown.append((out.detach(), x.grad, weight.grad))
    for expected, ours in zip(*grown, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 4), (1, 2, 4)])
def test_other_convolutions_are_left_alone(stride: int, dilation: int, groups: int) -> None:
    x = torch.randn(1, 4, 1, 9)
    weight = torch.randn(4, 4 // groups, 1, 3, requires_grad=True)
    geometry = ((1, stride), (0, dilation), (1, dilation))
    with FastDepthwiseGradient():
        out = functional.conv2d(x, weight, None, *geometry, groups)
    assert "Depthwise" not in type(out.grad_fn).__name__
    assert torch.equal(out, functional.conv2d(x, weight, None, *geometry, groups))


def test_autocast_computes_in_bfloat16() -> None:
    weight = torch.randn(4, 1, 1, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), FastDepthwiseGradient():
        out = functional.conv2d(torch.randn(1, 4, 1, 9), weight, None, (1, 1), (0, 1), (1, 1), 4)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
