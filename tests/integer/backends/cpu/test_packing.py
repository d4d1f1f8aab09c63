"""Packed weights against the sums that the kernels form from them."""

import numpy as np
import pytest
import torch

from zqlib.integer.backends.cpu.packing import pack_bias, pack_depthwise, pack_panels


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize(("out", "runs", "size", "width"), [(1, 1, 1, 8), (33, 3, 7, 32)])
def test_panels(out: int, runs: int, size: int, width: int, depth: int) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (out, runs, size)).astype(np.int8)
    packed = pack_panels(weight, width, depth)
    assert packed.dtype == np.int8
    groups = -(-size // depth)
    assert packed.shape == (-(-out // width), runs, groups, width, depth)
    for o in range(out):
        column = packed[o // width, :, :, o % width].reshape(runs, depth * groups)
        assert (column[:, :size] == weight[o]).all() and not column[:, size:].any()
    assert not packed[-1, :, :, (out - 1) % width + 1 :].any()


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("taps", [1, 2, 4, 5, 6, 33])
def test_depthwise_phases(taps: int, depth: int) -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (5, taps)).astype(np.int8)
    packed = pack_depthwise(weight, 4, depth)
    for channel in range(5):
        for phase in range(depth):
            sequence = packed[channel // 4, phase, :, channel % 4].reshape(-1)
            expected = np.zeros_like(sequence)
            expected[phase : phase + taps] = weight[channel]
            assert (sequence == expected).all()
    assert not packed[1, :, :, 1:].any()


def test_bias_wraps() -> None:
    weight = torch.full((2, 3), 127, dtype=torch.int8)
    bias = torch.tensor([5, -(2**31) + 1], dtype=torch.int32)
    folded = pack_bias(bias, weight, 128)
    assert folded[:2].tolist() == [5 - 128 * 381, -(2**31) + 1 - 128 * 381 + 2**32]
    assert not folded[2:].any() and not pack_bias(None, weight, 0).any()
