"""The convolution kernels against the reference, over shapes, strides, dilations, bits, signs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from same import assert_same
from single import program_of
from tiny import integers, reproducible, single_conv

from zqlib.integer.arithmetic import dyadic
from zqlib.integer.backends.fusion import fuse
from zqlib.integer.nonlinear import exponent_multiplier
from zqlib.integer.operators import Conv2d, Sigmoid, Swish
from zqlib.integer.program import ACCUMULATOR, Conv1d, Requantize, TensorType, Term

SIGNED, UNSIGNED = (torch.int8, -128, 127), (torch.uint8, 0, 255)


def kind_of(channels: int, bits: int, unsigned: bool) -> TensorType:
    if unsigned:
        return TensorType(channels, torch.uint8, 0, 2**bits - 1)
    return TensorType(channels, torch.int8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@reproducible
@given(
    unsigned=st.booleans(),
    depthwise=st.booleans(),
    with_bias=st.booleans(),
    bits=st.integers(2, 8),
    channels=st.integers(1, 40),
    out=st.integers(1, 70),
    taps=st.integers(1, 9),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 12),
    frames=st.integers(27, 60),
    shortening=st.integers(0, 2),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_conv1d(
    unsigned: bool, depthwise: bool, with_bias: bool, bits: int, channels: int, out: int, taps: int,
    stride: int, dilation: int, padding: int, frames: int, shortening: int, threads: int, seed: int,
) -> None:  # fmt: skip
    kind = kind_of(channels, bits, unsigned)
    groups, out = (channels, channels) if depthwise else (1, out)
    limit = 2 ** (bits - 1) - 1
    weight = integers((out, channels // groups, taps), -limit, limit, torch.int8, seed)
    bias = integers((out,), -(2**30), 2**30, torch.int32, seed + 1) if with_bias else None
    program = single_conv(
        weight, bias, kind, weight_bits=bits, stride=stride, dilation=dilation, padding=padding,
        groups=groups,
    )  # fmt: skip
    x = integers((2, channels, frames), kind.low, kind.high, kind.dtype, seed + 2)
    assert_same(program, x, torch.tensor([frames, frames - shortening]), threads)


@reproducible
@given(
    unsigned=st.booleans(),
    channels=st.integers(1, 70),
    out=st.integers(1, 70),
    stride=st.integers(1, 3),
    frames=st.integers(1, 250),
    shorter=st.integers(1, 250),
    batch=st.integers(1, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_pointwise(
    unsigned: bool, channels: int, out: int, stride: int, frames: int, shorter: int, batch: int,
    threads: int, seed: int,
) -> None:  # fmt: skip
    """So many frames that they are computed in parts, and utterances that end within any."""
    kind = kind_of(channels, 8, unsigned)
    weight = integers((out, channels, 1), -127, 127, torch.int8, seed)
    conv = Conv1d("conv", "x", "acc", weight, None, 8, stride, 0, 1, 1)
    terms = (Term("acc", *dyadic(torch.full((out,), 2.0**-12).double())),)
    types = {"x": kind, "acc": ACCUMULATOR(out), "y": kind_of(out, 8, True)}
    x = integers((batch, channels, frames), kind.low, kind.high, kind.dtype, seed + 1)
    lengths = torch.tensor([min(shorter, frames), *[frames] * (batch - 1)])
    assert_same(program_of(types, conv), x, lengths, threads)
    assert_same(program_of(types, conv, Requantize("down", terms, "y")), x, lengths, threads)


@pytest.mark.parametrize("taps", [1, 5, 129])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("container", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("extreme", [-127, 127])
def test_conv1d_at_the_extremes(
    extreme: int, container: tuple[torch.dtype, int, int], depthwise: bool, taps: int
) -> None:
    """Where products added in pairs would saturate 16 bits, and their sums would soon."""
    dtype, low, high = container
    channels, out, groups = (48, 48, 48) if depthwise else (256, 32, 1)
    weight = torch.full((out, channels // groups, taps), extreme, dtype=torch.int8)
    program = single_conv(weight, None, TensorType(channels, dtype, low, high), groups=groups)
    for value in (low, high):
        x = torch.full((1, channels, 140), value).to(dtype)
        assert_same(program, x, torch.tensor([140]))


@pytest.mark.parametrize("depthwise", [False, True])
def test_accumulator_at_the_ends_of_int32(depthwise: bool) -> None:
    """Partial sums with the offset of signed bytes wrap, the result does not."""
    weight = torch.full((8, 1 if depthwise else 8, 1), 127, dtype=torch.int8)
    room = 127 * 128 * weight.shape[1]
    bias = torch.tensor([2**31 - 1 - room, -(2**31) + 1 + room] * 4, dtype=torch.int32)
    program = single_conv(weight, bias, groups=8 if depthwise else 1)
    x = torch.tensor([-128, 127, 0, -1], dtype=torch.int8).repeat(1, 8, 5)
    assert_same(program, x, torch.tensor([20]))


@reproducible
@given(
    unsigned=st.booleans(),
    planes=st.integers(1, 6),
    out_planes=st.integers(1, 40),
    taps=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    bands=st.integers(4, 20),
    frames=st.integers(8, 20),
    shortening=st.integers(0, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_conv2d(
    unsigned: bool, planes: int, out_planes: int, taps: int, stride: int, padding: int, bands: int,
    frames: int, shortening: int, threads: int, seed: int,
) -> None:  # fmt: skip
    kind = kind_of(planes * bands, 8, unsigned)
    weight = integers((out_planes, planes, taps, taps), -127, 127, torch.int8, seed)
    bias = integers((out_planes,), -(2**30), 2**30, torch.int32, seed + 1)
    conv = Conv2d("conv", "x", "acc", weight, bias, 8, stride, padding, bands)
    channels = out_planes * conv.reduced(bands)
    target = TensorType(channels, torch.uint8, 0, 255)
    multiplier = torch.rand(channels, generator=torch.Generator().manual_seed(seed)) / 2**24
    requantize = Requantize("down", (Term("acc", *dyadic(multiplier.double())),), "y")
    types = {"x": kind, "acc": ACCUMULATOR(channels), "y": target}
    x = integers((2, planes * bands, frames), kind.low, kind.high, kind.dtype, seed + 2)
    lengths = torch.tensor([frames - shortening, frames])
    assert_same(program_of(types, conv), x, lengths, threads)
    assert_same(program_of(types, conv, requantize), x, lengths, threads)


@reproducible
@given(
    uniform=st.booleans(),
    residual=st.booleans(),
    swish=st.booleans(),
    planes=st.integers(1, 40),
    middle=st.integers(1, 20),
    bands=st.integers(5, 16),
    taps=st.integers(1, 3),
    shortening=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_images_between_convolutions(
    uniform: bool, residual: bool, swish: bool, planes: int, middle: int, bands: int, taps: int,
    shortening: int, seed: int,
) -> None:  # fmt: skip
    """Two Conv2d and a Conv1d, whose order of channels in between is the backend's business."""

    def conv2d(name: str, source: str, weight: torch.Tensor, bands: int, stride: int) -> Conv2d:
        bias = integers((len(weight),), -1000, 1000, torch.int32, seed)
        return Conv2d(name, source, f"{name}.acc", weight, bias, 8, stride, 1, bands)

    first = conv2d("a", "x", integers((planes, 1, 3, 3), -127, 127, torch.int8, seed), bands, 1)
    weight = integers((middle, planes, 3, 3), -127, 127, torch.int8, seed + 1)
    second = conv2d("b", "y", weight, first.reduced(bands), 2)
    channels = planes * first.reduced(bands)
    last = middle * second.reduced(first.reduced(bands))
    weight = integers((7, last, taps), -127, 127, torch.int8, seed + 2)
    dense = Conv1d("c", "z", "c.acc", weight, None, 8, 1, 1, 1, 1)
    multiplier = torch.rand(planes, 1, generator=torch.Generator().manual_seed(seed)).double()
    multiplier = (multiplier / 256).repeat(1, channels // planes).flatten()
    if not uniform:
        multiplier[-1] /= 2
    once = torch.full((last,), 2.0**-11).double()
    down = Requantize("a.down", (Term("a.acc", *dyadic(multiplier)),), "s" if swish else "y")
    terms = [Term("b.acc", *dyadic(once)), *([Term("w", *dyadic(once * 2**8))] if residual else [])]
    types = {
        "x": kind_of(bands, 8, False),
        "a.acc": ACCUMULATOR(channels),
        "s": TensorType(channels, torch.int32, -(2**15), 2**15),
        "y": kind_of(channels, 8, True),
        "b.acc": ACCUMULATOR(last),
        "w": ACCUMULATOR(last),
        "z": kind_of(last, 8, False),
        "c.acc": ACCUMULATOR(7),
    }
    operators = [first, down, second]
    if swish:
        gain = dyadic(torch.tensor([2.0**-15]).double())
        operators.insert(2, Swish("swish", "s", "y", exponent_multiplier(0.01), gain))
    if residual:  # of an image with itself, by another convolution
        operators.append(replace(second, name="w", output="w"))
    operators += [Requantize("b.down", tuple(terms), "z"), dense]
    x = integers((2, bands, 14), -128, 127, torch.int8, seed + 3)
    assert_same(program_of(types, *operators), x, torch.tensor([14 - shortening, 14]), threads=2)


@reproducible
@given(
    depthwise=st.booleans(),
    first_is_residual=st.booleans(),
    wide_output=st.booleans(),
    magnitude=st.integers(-12, 3),
    channels=st.integers(1, 37),
    frames=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_requantization_of_a_convolution_and_a_residual(
    depthwise: bool, first_is_residual: bool, wide_output: bool, magnitude: int, channels: int,
    frames: int, seed: int,
) -> None:  # fmt: skip
    """Fused or not, with sums that fit int32 and sums that do not."""
    x = TensorType(channels, torch.int8, -128, 127)
    target = ACCUMULATOR(channels) if wide_output else TensorType(channels, torch.int8, -100, 90)
    weight = integers((channels, 1 if depthwise else channels, 3), -127, 127, torch.int8, seed)
    bias = integers((channels,), -(2**29), 2**29, torch.int32, seed)
    groups = channels if depthwise else 1
    conv = Conv1d("conv", "x", "acc", weight, bias, 8, 1, 1, 1, groups)
    multiplier = integers((2, channels), 0, 2**20, torch.int64, seed + 1) / 2**20 * 2.0**magnitude
    terms = [Term("acc", *dyadic(multiplier[0])), Term("x", *dyadic(multiplier[1]))]
    sum_ = Requantize("sum", tuple(terms[::-1] if first_is_residual else terms), "y")
    program = program_of({"x": x, "acc": ACCUMULATOR(channels), "y": target}, conv, sum_)
    values = integers((3, channels, frames), -128, 127, torch.int8, seed + 2)
    assert_same(program, values, torch.tensor([frames, 1, max(1, frames - 2)]))


@reproducible
@given(
    depthwise=st.booleans(),
    unsigned=st.booleans(),
    magnitude=st.sampled_from([-22, -9, 3]),
    channels=st.integers(1, 37),
    seed=st.integers(0, 2**31),
)
def test_function_of_a_convolution(
    depthwise: bool, unsigned: bool, magnitude: int, channels: int, seed: int
) -> None:
    """With sums that fit int32 and sums that do not."""
    weight = integers((channels, 1 if depthwise else channels, 3), -127, 127, torch.int8, seed)
    bias = integers((channels,), -(2**29), 2**29, torch.int32, seed)
    groups = channels if depthwise else 1
    conv = Conv1d("conv", "x", "acc", weight, bias, 8, 1, 1, 1, groups)
    terms = (Term("acc", *dyadic(torch.full((channels,), 2.0**magnitude).double())),)
    types = {
        "x": kind_of(channels, 8, False),
        "acc": ACCUMULATOR(channels),
        "y": TensorType(channels, torch.int32, -(2**15), 2**15 - 5),
        "z": kind_of(channels, 8, unsigned),
    }
    sigmoid = Sigmoid("sigmoid", "y", "z", exponent_multiplier(1e-4), types["z"].high)
    program = program_of(types, conv, Requantize("down", terms, "y"), sigmoid)
    assert [type(job.function) for job in fuse(program)][:1] == [Sigmoid]
    x = integers((2, channels, 30), -128, 127, torch.int8, seed + 2)
    assert_same(program, x, torch.tensor([30, 11]))
