"""Every job has a cost; its operations are counted, not its seconds."""

import pytest
import torch
from tiny import N_MELS, integers, lowered

from zqlib.integer.backends.cpu import Executor
from zqlib.integer.backends.cpu.profile import profile
from zqlib.integer.operators import Conv1d


@pytest.mark.parametrize("threads", [1, 2])
def test_profile(threads: int) -> None:
    program, _ = lowered("separable")
    x, lengths = integers((2, N_MELS, 40), -128, 127, torch.int8, 0), torch.tensor([40, 31])
    ticks = iter(range(10**6))
    costs = profile(Executor(program, threads), x, lengths, 2, clock=lambda: float(next(ticks)))
    convolutions = [o for o in program.operators if isinstance(o, Conv1d)]
    assert [c.name for c in costs] == [*(o.name for o in convolutions), "tokens"]
    assert {c.kind for c in costs} == {"Conv1d depthwise", "Conv1d pointwise", "Argmax"}
    assert {c.seconds for c in costs} == {1.0}
    frames = 20  # the first convolution has stride 2
    for cost, conv in zip(costs, convolutions, strict=False):
        assert cost.operations == 2 * conv.weight.numel() * 2 * frames
        assert cost.gop_per_s == cost.operations / 1e9
    assert costs[-1].operations == 0
