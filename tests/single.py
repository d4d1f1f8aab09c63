"""Programs of one operator."""

from collections.abc import Mapping

import torch
from tiny import integers
from torch import Tensor

from zqlib.integer.arithmetic import dyadic
from zqlib.integer.nonlinear import exponent_multiplier
from zqlib.integer.operators import Attention, Operator, Positions
from zqlib.integer.program import (
    ACCUMULATOR,
    Argmax,
    Conv1d,
    Program,
    Requantize,
    TensorType,
    Term,
)


def one(multiplier: float) -> tuple[Tensor, Tensor]:
    return dyadic(torch.tensor([multiplier], dtype=torch.float64))


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


def attention_program(
    heads: int, size: int, most: int, seed: int, score: float = 2.0**-3
) -> Program:
    """Query, key and value are three requantizations of x."""
    channels = heads * size
    kind = TensorType(channels, torch.int8, -128, 127)
    types = dict.fromkeys("xqkvp", kind) | {"y": ACCUMULATOR(channels)}
    generator = torch.Generator().manual_seed(seed)
    copies = [
        Requantize(name, (Term("x", *dyadic(torch.rand(channels, generator=generator).double())),),
                   name)
        for name in "qkv"
    ]  # fmt: skip
    table = integers((most, channels), -127, 127, torch.int8, seed + 1)
    biases = integers((2, channels), -3000, 3000, torch.int32, seed + 2)
    attention = Attention(
        "attention", ("q", "k", "v", "p"), "y", heads, biases[0].clone(), biases[1].clone(),
        one(score), one(score / 2), exponent_multiplier(2.0**-12),
    )  # fmt: skip
    return program_of(types, *copies, Positions("positions", "x", "p", table), attention)
