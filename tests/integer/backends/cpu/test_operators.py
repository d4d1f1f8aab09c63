"""The other kernels against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from same import assert_same
from single import attention_program, one, program_of
from tiny import integers, reproducible

from zqlib.errors import InputError
from zqlib.integer.arithmetic import dyadic
from zqlib.integer.backends.cpu import Executor
from zqlib.integer.nonlinear import LayerNormConstants, exponent_multiplier
from zqlib.integer.operators import Attention, LayerNorm, Positions, Product, Sigmoid, Swish
from zqlib.integer.program import ACCUMULATOR, Requantize, TensorType, Term

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


@reproducible
@given(
    term_count=st.integers(1, 4),
    exponent=st.integers(-40, 22),
    bits=st.integers(2, 8),
    target=st.sampled_from(["int8", "uint8", "int32"]),
    channels=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_requantize(
    term_count: int, exponent: int, bits: int, target: str, channels: int, seed: int
) -> None:
    """Any int32, extremes and ties included, times multipliers of every size."""
    kinds = {
        "int8": TensorType(channels, torch.int8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        "uint8": TensorType(channels, torch.uint8, 0, 2**bits - 1),
        "int32": ACCUMULATOR(channels),
    }
    multipliers = integers((term_count, channels), 0, 8, torch.int64, seed) / 8 * 2.0**exponent
    terms = tuple(Term("x", *dyadic(row)) for row in multipliers)
    program = program_of(
        {"x": ACCUMULATOR(channels), "y": kinds[target]}, Requantize("sum", terms, "y")
    )
    width = 2 ** min(31, max(3, 10 - exponent))
    x = integers((2, channels, 37), -width, width - 1, torch.int32, seed)
    x[0, :, :4] = torch.tensor([INT32_MIN, INT32_MAX, -1, 0], dtype=torch.int32)
    assert_same(program, x, torch.tensor([37, 5]), threads=2)


@reproducible
@given(
    wide=st.booleans(),
    wide_output=st.booleans(),
    channels=st.integers(1, 50),
    magnitude=st.integers(0, 31),
    eps=st.sampled_from([0.0, 1e-5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_layer_norm(
    wide: bool, wide_output: bool, channels: int, magnitude: int, eps: float, seed: int
) -> None:
    kind = ACCUMULATOR(channels) if wide else TensorType(channels, torch.int8, -128, 127)
    target = TensorType(channels, torch.int8, -128, 127)
    if wide_output:  # so fine that one step of any intermediate result is seen
        target = ACCUMULATOR(channels)
    generator = torch.Generator().manual_seed(seed)
    gamma, beta = torch.randn(2, channels, generator=generator)
    constants = LayerNormConstants.of(gamma, beta, eps, 1e-3, 2.0**-28 if wide_output else 1 / 32)
    program = program_of({"x": kind, "y": target}, LayerNorm("norm", "x", "y", constants))
    width = min(2**magnitude, -kind.low)
    x = integers((2, channels, 9), -width, width - 1, kind.dtype, seed)
    x[0, :, 0] = kind.high  # a constant row
    x[1, ::2, 0], x[1, 1::2, 0] = kind.low, kind.high
    assert_same(program, x, torch.tensor([9, 4]), threads=2)


@reproducible
@given(
    function=st.sampled_from(["sigmoid", "swish"]),
    source=st.sampled_from([(torch.int8, 127), (torch.uint8, 255), (torch.int32, 2**15)]),
    unsigned=st.booleans(),
    scale=st.floats(1e-6, 0.1),
    seed=st.integers(0, 2**31),
)
def test_functions(
    function: str, source: tuple[torch.dtype, int], unsigned: bool, scale: float, seed: int
) -> None:
    dtype, high = source
    kind = TensorType(21, dtype, 0 if dtype == torch.uint8 else -high, high)
    target = TensorType(21, torch.int8, -128, 127)
    if unsigned:
        target = TensorType(21, torch.uint8, 0, 255)
    exponent = exponent_multiplier(scale)
    operator = (
        Sigmoid("f", "x", "y", exponent, target.high)
        if function == "sigmoid"
        else Swish("f", "x", "y", exponent, one(127 / high / 2**15))
    )
    program = program_of({"x": kind, "y": target}, operator)
    x = integers((2, 21, 50), kind.low, kind.high, dtype, seed)
    x[0, :, 0], x[0, :, 1] = kind.low, kind.high
    assert_same(program, x, torch.tensor([50, 3]), threads=2)


@pytest.mark.parametrize("second", [torch.int8, torch.uint8])
def test_product(second: torch.dtype) -> None:
    x = TensorType(19, torch.int8, -128, 127)
    y = TensorType(19, second, 0, 127) if second == torch.uint8 else x
    types = {"x": x, "y": y, "z": ACCUMULATOR(19)}
    copy = Requantize("copy", (Term("x", *dyadic(torch.ones(19).double())),), "y")
    values = integers((2, 19, 1200), -128, 127, torch.int8, 0)
    for reads in (("x", "y"), ("y", "x")):
        program = program_of(types, copy, Product("product", reads, "z"))
        assert_same(program, values, torch.tensor([1200, 7]), threads=2)


@reproducible
@given(
    heads=st.integers(1, 3),
    size=st.integers(1, 40),
    frames=st.integers(1, 70),
    shorter=st.integers(1, 70),
    score=st.sampled_from([2.0**-9, 2.0**-3, 2.0**20]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_attention(
    heads: int, size: int, frames: int, shorter: int, score: float, threads: int, seed: int
) -> None:
    program = attention_program(heads, size, 70, seed, score)
    x = integers((2, heads * size, frames), -128, 127, torch.int8, seed)
    assert_same(program, x, torch.tensor([frames, min(shorter, frames)]), threads)


def test_more_frames_than_positions_are_refused() -> None:
    program = attention_program(1, 4, 5, 0)
    x = torch.zeros(1, 4, 6, dtype=torch.int8)
    with pytest.raises(InputError, match="at most 5; cut the recording"):
        Executor(program).run(x, torch.tensor([6]))


def test_positions() -> None:
    channels = 7
    kind = TensorType(channels, torch.int8, -127, 127)
    program = attention_program(1, channels, 12, 3)
    table = next(o.table for o in program.operators if isinstance(o, Positions))
    positions = Positions("positions", "x", "p", table)
    attention = next(o for o in program.operators if isinstance(o, Attention))
    same = Attention(
        "attention", ("x", "x", "x", "p"), "y", 1, attention.content_bias, attention.distance_bias,
        one(0.0), one(2.0**-2), attention.exponent,
    )  # fmt: skip
    alone = program_of({"x": kind, "p": kind, "y": ACCUMULATOR(channels)}, positions, same)
    for frames in (1, 2, 11, 12):
        x = integers((2, channels, frames), -127, 127, torch.int8, frames)
        assert_same(alone, x, torch.tensor([frames, 1]))


def test_argmax_takes_the_first_of_equals() -> None:
    x = integers((2, 5, 300), -2, 2, torch.int8, 0)
    kind = TensorType(5, torch.int8, -2, 2)
    copy = Requantize("copy", (Term("x", *dyadic(torch.ones(5).double())),), "y")
    program = program_of({"x": kind, "y": ACCUMULATOR(5)}, copy)
    assert_same(program, x, torch.tensor([300, 300]))
