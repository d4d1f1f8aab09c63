"""The comparison of the kernels with the reference."""

import torch
from torch import Tensor

from zqlib.integer import reference
from zqlib.integer.backends.cpu import INSTRUCTION_SETS, Executor
from zqlib.integer.backends.cpu.library import library
from zqlib.integer.program import Program

AVAILABLE = [name for name in INSTRUCTION_SETS if library().lanes(name)]
"""Instruction sets of this processor; the portable one is always among them."""


def assert_same(program: Program, x: Tensor, lengths: Tensor, threads: int = 1) -> None:
    """The kernels of every instruction set compute what the reference does, padding included."""
    expected = reference.run(program, x, lengths)
    for instruction_set in AVAILABLE:
        actual = Executor(program, threads, instruction_set).run(x, lengths)
        assert torch.equal(actual.logits, expected.logits), instruction_set
        assert torch.equal(actual.tokens, expected.tokens), instruction_set
        assert torch.equal(actual.lengths, expected.lengths), instruction_set
        assert actual.tokens.dtype == expected.tokens.dtype == torch.int32
