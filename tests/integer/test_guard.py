"""The guard lets integers through, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zqlib.integer.guard import FloatInIntegerProgram, IntegerOnly

X = torch.arange(6).reshape(2, 3)
REAL = torch.ones(2, 3)

BREACHES: dict[str, Callable[[], object]] = {
    "float operand": lambda: REAL + REAL,
    "float beside an integer": lambda: X + REAL,
    "float keyword operand": lambda: torch.add(X, other=REAL),
    "float in a list": lambda: torch.cat([X, REAL]),
    "float in a nested result": lambda: REAL.split(1),
    "conversion": lambda: X.float(),
    "half": lambda: X.to(torch.float16),
    "bfloat16": lambda: X.to(torch.bfloat16),
    "complex": lambda: X.to(torch.complex64),
    "creation": lambda: torch.zeros(2),
    "true division": lambda: X / 2,
    "square root": lambda: X.sqrt(),
    "softmax": lambda: X.softmax(1, dtype=torch.float32),
    "mean": lambda: X.sum(dtype=torch.float64),
    "scalar promotion": lambda: X * 0.5,
    "power": lambda: X**0.5,
    "scalar that is truncated": lambda: X.clone().fill_(0.7),
    "range with a real step": lambda: torch.arange(0, 4, 0.5, dtype=torch.int32),
    "view of a float's bits": lambda: REAL.view(torch.int32),
    "view as a float": lambda: torch.arange(4, dtype=torch.int32).view(torch.float32),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_float_is_caught(breach: str) -> None:
    BREACHES[breach]()  # possible outside the guard
    with IntegerOnly(), pytest.raises(FloatInIntegerProgram, match="inside an integer program"):
        BREACHES[breach]()


def test_operands_are_checked_before_the_operation_runs() -> None:
    target = torch.zeros(3)
    with IntegerOnly(), pytest.raises(FloatInIntegerProgram):
        target.add_(1)
    assert target.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "operation",
    [
        lambda: X + 1,
        lambda: X.bitwise_right_shift(2).clamp(0, 255).to(torch.uint8),
        lambda: torch._int_mm(X.to(torch.int8), X.t().to(torch.int8).contiguous()),
        lambda: X.masked_fill(X > 2, 0),
        lambda: torch.cat([X, X]).argmax(1),
        lambda: torch.div(X, 2, rounding_mode="floor"),
    ],
)
def test_integers_pass_unchanged(operation: Callable[[], Tensor]) -> None:
    expected = operation()
    with IntegerOnly():
        actual = operation()
    assert torch.equal(actual, expected)


def test_guard_ends_with_its_block() -> None:
    with IntegerOnly():
        pass
    assert float((X * 0.5).sum()) == 7.5
