"""Programs of one operator, and the comparison of the kernels with the reference."""

from collections.abc import Mapping

import torch
from torch import Tensor

from zqlib.integer import reference
from zqlib.integer.backends.cpu import INSTRUCTION_SETS, Executor
from zqlib.integer.backends.cpu.library import library
from zqlib.integer.operators import Operator
from zqlib.integer.program import ACCUMULATOR, Argmax, Conv1d, Program, TensorType

AVAILABLE = [name for name in INSTRUCTION_SETS if library().lanes(name)]
"""Instruction sets of this processor; the portable one is always among them."""


def program_of(tensors: Mapping[str, TensorType], *operators: Operator) -> Program:
    """Reads `x`; its logits are the output of the last operator, through an identity if narrow."""
    logits = operators[-1].output
    channels = tensors[logits].channels
    types = {**tensors, "ids": TensorType(1, torch.int32, 0, channels - 1)}
    if tensors[logits].dtype != torch.int32:
        identity = torch.eye(channels, dtype=torch.int8)[:, :, None]
        operators += (Conv1d("identity", logits, "logits", identity, None, 8, 1, 0, 1, 1),)
        types["logits"] = ACCUMULATOR(channels)
        logits = "logits"
    return Program(types, (*operators, Argmax("argmax", logits, "ids")), "x", logits, "ids")


def assert_same(program: Program, x: Tensor, lengths: Tensor, threads: int = 1) -> None:
    """The kernels of every instruction set compute what the reference does, padding included."""
    expected = reference.run(program, x, lengths)
    for instruction_set in AVAILABLE:
        actual = Executor(program, threads, instruction_set).run(x, lengths)
        assert torch.equal(actual.logits, expected.logits), instruction_set
        assert torch.equal(actual.tokens, expected.tokens), instruction_set
        assert torch.equal(actual.lengths, expected.lengths), instruction_set
        assert actual.tokens.dtype == expected.tokens.dtype == torch.int32
