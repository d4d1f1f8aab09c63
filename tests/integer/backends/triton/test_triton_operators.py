"""The kernels for NVIDIA GPUs against the reference: interpreted, or on a GPU if asked for.

TRITON_INTERPRET=0 pytest tests/integer/backends/triton runs them on a GPU.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from single import attention_program, one, program_of
from tiny import integers, reproducible, single_conv
from torch import Tensor

from zqlib.integer import reference
from zqlib.integer.arithmetic import dyadic
from zqlib.integer.backends.triton import Executor
from zqlib.integer.nonlinear import LayerNormConstants, exponent_multiplier
from zqlib.integer.operators import Conv2d, LayerNorm, Product, Sigmoid, Swish
from zqlib.integer.program import ACCUMULATOR, Program, Requantize, TensorType, Term

few = settings(reproducible, max_examples=10)  # the interpreter is slow
SEEDS = st.integers(0, 2**31)


def assert_same(program: Program, x: Tensor, lengths: Tensor) -> None:
    expected, actual = reference.run(program, x, lengths), Executor(program).run(x, lengths)
    for name in ("logits", "tokens", "lengths"):
        assert torch.equal(getattr(actual, name).cpu(), getattr(expected, name)), name
    assert actual.tokens.dtype == expected.tokens.dtype


def kind_of(channels: int, unsigned: bool, bits: int = 8) -> TensorType:
    if unsigned:
        return TensorType(channels, torch.uint8, 0, 2**bits - 1)
    return TensorType(channels, torch.int8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@few
@given(
    unsigned=st.booleans(),
    depthwise=st.booleans(),
    bits=st.sampled_from([4, 7, 8]),
    channels=st.integers(1, 80),
    out=st.integers(1, 70),
    taps=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 8),
    shortening=st.integers(0, 30),
    seed=SEEDS,
)
def test_conv1d(
    unsigned: bool, depthwise: bool, bits: int, channels: int, out: int, taps: int, stride: int,
    dilation: int, padding: int, shortening: int, seed: int,
) -> None:  # fmt: skip
    groups, out = (channels, channels) if depthwise else (1, out)
    weight = integers((out, channels // groups, taps), -127, 127, torch.int8, seed)
    bias = integers((out,), -(2**30), 2**30, torch.int32, seed + 1)
    kind = kind_of(channels, unsigned, bits)
    program = single_conv(
        weight, bias, kind, stride=stride, dilation=dilation, padding=padding, groups=groups
    )
    x = integers((2, channels, 70), kind.low, kind.high, kind.dtype, seed + 2)
    assert_same(program, x, torch.tensor([70, 70 - shortening]))


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
def test_conv1d_at_the_extremes(unsigned: bool, depthwise: bool) -> None:
    """Sums at both ends of int32, from the largest values and weights."""
    kind = kind_of(8, unsigned)
    weight = torch.full((8, 1 if depthwise else 8, 1), 127, dtype=torch.int8)
    room = 127 * kind.magnitude * weight.shape[1]
    bias = torch.tensor([2**31 - 1 - room, -(2**31) + 1 + room] * 4, dtype=torch.int32)
    program = single_conv(weight, bias, kind, groups=8 if depthwise else 1)
    ends = torch.tensor([kind.low, kind.high, 0, 1]).to(kind.dtype)
    assert_same(program, ends.repeat(1, 8, 5), torch.tensor([20]))


@few
@given(
    unsigned=st.booleans(),
    planes=st.integers(1, 5),
    out_planes=st.integers(1, 20),
    taps=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    bands=st.integers(4, 9),
    shortening=st.integers(0, 3),
    seed=SEEDS,
)
def test_conv2d_and_its_requantization(
    unsigned: bool, planes: int, out_planes: int, taps: int, stride: int, padding: int, bands: int,
    shortening: int, seed: int,
) -> None:  # fmt: skip
    kind = kind_of(planes * bands, unsigned)
    weight = integers((out_planes, planes, taps, taps), -127, 127, torch.int8, seed)
    bias = integers((out_planes,), -1000, 1000, torch.int32, seed + 1)
    conv = Conv2d("conv", "x", "acc", weight, bias, 8, stride, padding, bands)
    channels = out_planes * conv.reduced(bands)
    multiplier = torch.rand(channels, generator=torch.Generator().manual_seed(seed)) / 2**8
    requantize = Requantize("down", (Term("acc", *dyadic(multiplier.double())),), "y")
    target = TensorType(channels, torch.uint8, 0, 255)
    types = {"x": kind, "acc": ACCUMULATOR(channels), "y": target}
    x = integers((2, planes * bands, 11), kind.low, kind.high, kind.dtype, seed + 2)
    lengths = torch.tensor([11 - shortening, 11])
    assert_same(program_of(types, conv), x, lengths)
    assert_same(program_of(types, conv, requantize), x, lengths)


@few
@given(
    depthwise=st.booleans(),
    function=st.sampled_from([None, Sigmoid, Swish]),
    magnitude=st.integers(-12, 3),
    channels=st.integers(1, 37),
    seed=SEEDS,
)
def test_residual_and_function_of_a_convolution(
    depthwise: bool, function: type[Sigmoid | Swish] | None, magnitude: int, channels: int,
    seed: int,
) -> None:  # fmt: skip
    x, y = kind_of(channels, False), TensorType(channels, torch.int32, -(2**15), 2**15)
    weight = integers((channels, 1 if depthwise else channels, 3), -127, 127, torch.int8, seed)
    groups = channels if depthwise else 1
    conv = replace(
        single_conv(weight, None, x, padding=1, groups=groups).operators[0],
        bias=integers((channels,), -(2**29), 2**29, torch.int32, seed),
    )
    multiplier = integers((2, channels), 0, 2**20, torch.int64, seed + 1) / 2**20 * 2.0**magnitude
    terms = Term("x", *dyadic(multiplier[1])), Term("acc", *dyadic(multiplier[0]))
    operators = [conv, Requantize("sum", terms, "y")]
    types = {"x": x, "acc": ACCUMULATOR(channels), "y": y, "z": kind_of(channels, True)}
    if function is Sigmoid:
        operators.append(Sigmoid("f", "y", "z", exponent_multiplier(1e-3), 255))
    if function is Swish:
        operators.append(Swish("f", "y", "z", exponent_multiplier(1e-3), one(2.0**-22), zero=9))
    values = integers((2, channels, 20), -128, 127, torch.int8, seed + 2)
    assert_same(program_of(types, *operators), values, torch.tensor([20, 3]))


@few
@given(
    term_count=st.integers(1, 3),
    exponent=st.integers(-40, 22),
    wide=st.booleans(),
    channels=st.integers(1, 40),
    seed=SEEDS,
)
def test_requantize(term_count: int, exponent: int, wide: bool, channels: int, seed: int) -> None:
    """Any int32, extremes and ties included, times multipliers of every size."""
    multipliers = integers((term_count, channels), 0, 8, torch.int64, seed) / 8 * 2.0**exponent
    terms = tuple(Term("x", *dyadic(row)) for row in multipliers)
    target = ACCUMULATOR(channels) if wide else kind_of(channels, False)
    types = {"x": ACCUMULATOR(channels), "y": target}
    width = 2 ** min(31, max(3, 10 - exponent))
    x = integers((2, channels, 9), -width, width - 1, torch.int32, seed)
    x[0, :, :4] = torch.tensor([-(2**31), 2**31 - 1, -1, 0], dtype=torch.int32)
    assert_same(program_of(types, Requantize("sum", terms, "y")), x, torch.tensor([9, 5]))


@few
@given(
    wide=st.booleans(),
    fine=st.booleans(),
    channels=st.integers(1, 40),
    magnitude=st.integers(0, 31),
    eps=st.sampled_from([0.0, 1e-5, 1.0]),
    seed=SEEDS,
)
def test_layer_norm(
    wide: bool, fine: bool, channels: int, magnitude: int, eps: float, seed: int
) -> None:
    kind = ACCUMULATOR(channels) if wide else kind_of(channels, False)
    target = ACCUMULATOR(channels) if fine else kind_of(channels, False)  # or steps that all show
    gamma, beta = torch.randn(2, channels, generator=torch.Generator().manual_seed(seed))
    constants = LayerNormConstants.of(gamma, beta, eps, 1e-3, 2.0**-28 if fine else 1 / 32)
    width = min(2**magnitude, -kind.low)
    x = integers((2, channels, 9), -width, width - 1, kind.dtype, seed)
    x[0, :, 0] = kind.high  # a constant row
    x[1, ::2, 0], x[1, 1::2, 0] = kind.low, kind.high
    program = program_of({"x": kind, "y": target}, LayerNorm("norm", "x", "y", constants))
    assert_same(program, x, torch.tensor([9, 4]))


@pytest.mark.parametrize(("dtype", "high"), [(torch.int8, 127), (torch.uint8, 255)])
def test_functions_of_the_input(dtype: torch.dtype, high: int) -> None:
    kind = TensorType(21, dtype, 0 if dtype == torch.uint8 else -high, high)
    types = {"x": kind, "y": kind_of(21, False)}
    x = integers((2, 21, 50), kind.low, kind.high, dtype, 0)
    x[0, 0, :2] = torch.tensor([kind.low, kind.high])
    for operator in (
        Sigmoid("f", "x", "y", exponent_multiplier(0.05), 127),
        Swish("f", "x", "y", exponent_multiplier(0.05), one(2.0**-15)),
    ):
        assert_same(program_of(types, operator), x, torch.tensor([50, 3]))


@pytest.mark.parametrize("unsigned", [False, True])
def test_product(unsigned: bool) -> None:
    x, y = kind_of(19, False), kind_of(19, unsigned)
    copy = Requantize("copy", (Term("x", *dyadic(torch.ones(19).double())),), "y")
    program = program_of(
        {"x": x, "y": y, "z": ACCUMULATOR(19)}, copy, Product("product", ("x", "y"), "z")
    )
    assert_same(program, integers((2, 19, 70), -128, 127, torch.int8, 0), torch.tensor([70, 7]))


@few
@given(
    heads=st.integers(1, 3),
    size=st.integers(1, 40),
    frames=st.integers(1, 70),
    shorter=st.integers(1, 70),
    score=st.sampled_from([2.0**-9, 2.0**-3, 2.0**20]),
    seed=SEEDS,
)
def test_attention(
    heads: int, size: int, frames: int, shorter: int, score: float, seed: int
) -> None:
    x = integers((2, heads * size, frames), -128, 127, torch.int8, seed)
    lengths = torch.tensor([frames, min(shorter, frames)])
    assert_same(attention_program(heads, size, 70, seed, score), x, lengths)


def test_argmax_takes_the_first_of_equals() -> None:
    kind = TensorType(5, torch.int8, -2, 2)
    copy = Requantize("copy", (Term("x", *dyadic(torch.ones(5).double())),), "y")
    program = program_of({"x": kind, "y": ACCUMULATOR(5)}, copy)
    assert_same(program, integers((2, 5, 60), -2, 2, torch.int8, 0), torch.tensor([60, 60]))
