"""The reference backend against direct float64 computations, which are exact at this size."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import BLOCKS, N_MELS, integers, lowered, reproducible, single_conv
from torch import Tensor
from torch.nn import functional

from zqlib.errors import InputError
from zqlib.integer import products, reference
from zqlib.integer.arithmetic import dyadic
from zqlib.integer.guard import FloatInIntegerProgram
from zqlib.integer.program import ACCUMULATOR, Argmax, Program, Requantize, TensorType, Term
from zqlib.integer.reference import run

SIGNED = TensorType(4, torch.int8, -128, 127)
UNSIGNED = TensorType(4, torch.uint8, 0, 255)


def masked(x: Tensor, lengths: Tensor) -> Tensor:
    return x * (torch.arange(x.shape[2]) < lengths[:, None])[:, None]


@reproducible
@given(
    unsigned=st.booleans(),
    depthwise=st.booleans(),
    with_bias=st.booleans(),
    channels=st.integers(1, 9),
    out=st.integers(1, 9),
    taps=st.integers(1, 7),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 12),
    frames=st.integers(20, 33),
    shortening=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_convolution_is_exact(
    unsigned: bool, depthwise: bool, with_bias: bool, channels: int, out: int, taps: int,
    stride: int, dilation: int, padding: int, frames: int, shortening: int, seed: int,
) -> None:  # fmt: skip
    kind = replace(UNSIGNED if unsigned else SIGNED, channels=channels)
    groups, out = (channels, channels) if depthwise else (1, out)
    weight = integers((out, channels // groups, taps), -127, 127, torch.int8, seed)
    bias = integers((out,), -(2**30), 2**30, torch.int32, seed + 1) if with_bias else None
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    program = single_conv(weight, bias, kind, **options)
    x = integers((2, channels, frames), kind.low, kind.high, kind.dtype, seed + 2)
    lengths = torch.tensor([frames, frames - shortening])

    output = run(program, x, lengths)

    expected = functional.conv1d(
        masked(x, lengths).double(), weight.double(), None if bias is None else bias.double(),
        **options,
    )  # fmt: skip
    assert output.logits.dtype == torch.int32
    assert torch.equal(output.logits.double(), expected)
    for row, length in enumerate(output.lengths.tolist()):
        alone = functional.conv1d(
            x[row : row + 1, :, : lengths[row]].double(), weight.double(), **options
        )
        assert length == alone.shape[2]


@pytest.mark.parametrize("kind", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("extreme", [-127, 127])
def test_convolution_is_exact_at_the_extremes(kind: TensorType, extreme: int) -> None:
    """Where 8-bit products added in pairs would saturate 16 bits."""
    kind = replace(kind, channels=256)
    weight = torch.full((32, 256, 3), extreme, dtype=torch.int8)
    program = single_conv(weight, None, kind)
    value = max(kind.low, kind.high, key=abs)
    x = torch.full((1, 256, 40), value).to(kind.dtype)
    logits = run(program, x, torch.tensor([40])).logits
    assert (logits == 256 * 3 * extreme * value).all()


@pytest.mark.parametrize("topology", BLOCKS)
def test_products_of_int32_give_the_same(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = lowered(topology)
    x = integers((2, N_MELS, 30), -128, 127, torch.int8, 0)
    lengths = torch.tensor([30, 21])
    monkeypatch.setattr(products, "int_mm_is_fast", lambda: False)
    without = run(program, x, lengths)
    monkeypatch.setattr(products, "int_mm_is_fast", lambda: True)
    with_int_mm = run(program, x, lengths)
    assert torch.equal(without.logits, with_int_mm.logits)
    assert torch.equal(without.tokens, with_int_mm.tokens)


def refusing_int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """As that of torch 2.11 on a CPU does."""
    if x.dtype == torch.uint8:
        raise RuntimeError("expected int8")
    return x.int() @ weight.int()


def saturating_int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """As on processors without VNNI."""
    pairs = x.int()[:, :, None] * weight.int()[None]
    pairs = (pairs[:, ::2] + pairs[:, 1::2]).clamp(-(2**15), 2**15 - 1)
    return pairs.sum(1, dtype=torch.int32)


@pytest.mark.parametrize("int_mm", [refusing_int_mm, saturating_int_mm])
def test_an_int_mm_that_will_not_do_is_noticed(
    int_mm: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    products.int_mm_is_fast.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    try:
        assert not products.int_mm_is_fast()
    finally:
        products.int_mm_is_fast.cache_clear()


@pytest.mark.parametrize(("rows", "depth", "columns"), [(40, 1, 4), (1, 4, 4), (40, 1, 1)])
def test_product_is_exact_whatever_the_strides_of_an_axis_of_one(
    rows: int, depth: int, columns: int
) -> None:
    """`torch._int_mm` alone returns garbage for these."""
    x = integers((2000,), -128, 127, torch.int8, 0)
    weight = integers((2000,), -127, 127, torch.int8, 1)
    for stride in (1, 7, 40):
        left = x.as_strided((rows, depth), (1, stride) if depth == 1 else (stride, 1))
        right = weight.as_strided((depth, columns), (stride, 1))
        expected = left.double() @ right.double()
        assert torch.equal(products.product(left, right).double(), expected)


def requantize_program(term_count: int, target: TensorType, multipliers: Tensor) -> Program:
    """Sums `term_count` inputs of one: x itself, `multipliers` (terms, channels) each."""
    terms = tuple(Term("x", *dyadic(row)) for row in multipliers)
    assert len(terms) == term_count
    identity = torch.eye(target.channels, dtype=torch.int8)[:, :, None]
    body = single_conv(identity, kind=target)
    return Program(
        {"in": SIGNED, "x": target, "acc": ACCUMULATOR(4), "ids": TensorType(1, torch.int32, 0, 3)},
        (Requantize("sum", tuple(replace(t, input="in") for t in terms), "x"), *body.operators),
        "in",
        "acc",
        "ids",
    )


@reproducible
@given(
    term_count=st.integers(1, 5),
    bits=st.integers(2, 8),
    unsigned=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_requantization_rounds_each_term_then_sums_then_clamps(
    term_count: int, bits: int, unsigned: bool, seed: int
) -> None:
    if unsigned:
        target = TensorType(4, torch.uint8, 0, 2**bits - 1)
    else:
        target = TensorType(4, torch.int8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # multipliers of few bits: float64 holds them and the products, ties included
    multipliers = integers((term_count, 4), 0, 31, torch.int64, seed).double() / 16
    program = requantize_program(term_count, target, multipliers)
    x = integers((2, 4, 50), -128, 127, torch.int8, seed + 1)
    logits = run(program, x, torch.tensor([50, 50])).logits
    rounded = torch.floor(x.double() * multipliers[:, None, :, None] + 0.5)
    expected = rounded.sum(0).clamp(target.low, target.high)
    assert torch.equal(logits.double(), expected)


def test_residual_of_branches_that_differ_in_scale_and_type() -> None:
    """y = clamp(round(conv(x) * M_a) + round(x * M_b)), with x read twice."""
    weight = integers((4, 4, 3), -127, 127, torch.int8, 0)
    conv = single_conv(weight, padding=1).operators[0]
    m_a, m_b = torch.full((4,), 2.0**-9).double(), torch.full((4,), 0.75).double()
    terms = (Term("acc", *dyadic(m_a)), Term("x", *dyadic(m_b)))
    program = Program(
        {
            "x": SIGNED,
            "acc": ACCUMULATOR(4),
            "y": ACCUMULATOR(4),
            "ids": TensorType(1, torch.int32, 0, 3),
        },
        (conv, Requantize("sum", terms, "y"), Argmax("ids", "y", "ids")),
        "x",
        "y",
        "ids",
    )
    x = integers((1, 4, 40), -128, 127, torch.int8, 1)
    accumulator = functional.conv1d(x.double(), weight.double(), padding=1)
    expected = torch.floor(accumulator * 2.0**-9 + 0.5) + torch.floor(x.double() * 0.75 + 0.5)
    assert torch.equal(run(program, x, torch.tensor([40])).logits.double(), expected)


def test_argmax_takes_the_first_of_equals() -> None:
    program = single_conv(torch.eye(4, dtype=torch.int8)[:, :, None])
    columns = [[1, 3, 3, 2], [5, 5, 5, 5], [-4, -3, -9, -3], [0, 0, -1, 7], [0, 0, 0, 1]]
    x = torch.tensor(columns, dtype=torch.int8).t()[None].contiguous()
    output = run(program, x, torch.tensor([5]))
    assert output.tokens.tolist() == [[1, 0, 1, 3, 3]]
    assert output.tokens.dtype == torch.int32


def test_argmax_of_many_equals_is_the_first() -> None:
    program = single_conv(torch.zeros(1000, 4, 1, dtype=torch.int8))
    x = integers((3, 4, 100), -128, 127, torch.int8, 0)
    assert not run(program, x, torch.full((3,), 100)).tokens.any()


PROGRAMS = {topology: lowered(topology)[0] for topology in BLOCKS}


@reproducible
@given(
    topology=st.sampled_from(sorted(BLOCKS)),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    beyond=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_padding_changes_no_integer(
    topology: str, lengths: list[int], beyond: int, seed: int
) -> None:
    """A batch, with garbage beyond every length, equals each utterance alone."""
    program = PROGRAMS[topology]
    x = integers((len(lengths), N_MELS, max(lengths) + beyond), -128, 127, torch.int8, seed)
    batch = run(program, x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = run(program, x[row : row + 1, :, :length], torch.tensor([length]))
        valid = int(alone.lengths)
        assert int(batch.lengths[row]) == valid == alone.tokens.shape[1]
        assert torch.equal(batch.logits[row, :, :valid], alone.logits[0])
        assert torch.equal(batch.tokens[row, :valid], alone.tokens[0])


def test_run_leaves_its_input_alone_and_repeats_itself() -> None:
    x, lengths = integers((2, N_MELS, 20), -128, 127, torch.int8, 3), torch.tensor([20, 11])
    kept, kept_lengths = x.clone(), lengths.clone()
    first = run(PROGRAMS["residual"], x, lengths)
    second = run(PROGRAMS["residual"], x, lengths)
    assert torch.equal(x, kept) and torch.equal(lengths, kept_lengths)
    assert torch.equal(first.logits, second.logits)


def through_float(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapper(*args: Tensor) -> Tensor:
        return function(*args).double().to(torch.int64)

    return wrapper


def test_run_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that computes the right integers by way of a float is caught."""
    monkeypatch.setattr(reference, "requantize", through_float(reference.requantize))
    with pytest.raises(FloatInIntegerProgram):
        run(PROGRAMS["separable"], torch.zeros(1, N_MELS, 9, dtype=torch.int8), torch.tensor([9]))


def test_float_smuggled_into_a_built_program_is_caught() -> None:
    program = lowered("dense")[0]
    requantization = next(o for o in program.operators if isinstance(o, Requantize))
    object.__setattr__(requantization.terms[0], "m", requantization.terms[0].m.double())
    x = torch.zeros(1, N_MELS, 9, dtype=torch.int8)
    with pytest.raises(FloatInIntegerProgram):
        run(program, x, torch.tensor([9]))


GOOD = torch.zeros(2, N_MELS, 10, dtype=torch.int8)
BAD_INPUTS = {
    "two axes": (GOOD[0], torch.tensor([10, 10]), "reads .batch, 8, frames"),
    "other channels": (GOOD[:, 1:], torch.tensor([10, 10]), "reads .batch, 8, frames"),
    "no frames": (GOOD[:, :, :0], torch.tensor([0, 0]), "reads .batch, 8, frames"),
    "no utterance": (GOOD[:0], torch.zeros(0).long(), "reads .batch, 8, frames"),
    "float": (GOOD.float(), torch.tensor([10, 10]), "reads torch.int8"),
    "unsigned": (GOOD.to(torch.uint8), torch.tensor([10, 10]), "reads torch.int8"),
    "one length for two": (GOOD, torch.tensor([10]), "lengths must be int64"),
    "int32 lengths": (GOOD, torch.tensor([10, 10], dtype=torch.int32), "lengths must be int64"),
    "float lengths": (GOOD, torch.tensor([10.0, 10.0]), "lengths must be int64"),
    "length 0": (GOOD, torch.tensor([10, 0]), "between 1 and"),
    "length beyond": (GOOD, torch.tensor([10, 11]), "between 1 and"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_input_that_does_not_fit_is_refused(case: str) -> None:
    x, lengths, message = BAD_INPUTS[case]
    with pytest.raises(InputError, match=message):
        run(PROGRAMS["separable"], x, lengths)


@pytest.mark.parametrize("value", [-9, 8])
def test_value_outside_the_input_range_is_refused(value: int) -> None:
    """The overflow proof counts on the range, which is tighter than the container."""
    program = single_conv(
        torch.ones(2, 4, 1, dtype=torch.int8), kind=TensorType(4, torch.int8, -8, 7)
    )
    x = torch.zeros(1, 4, 3, dtype=torch.int8)
    x[0, 2, 1] = value
    with pytest.raises(InputError, match=r"range \[-8, 7\]"):
        run(program, x, torch.tensor([3]))


@pytest.mark.parametrize("lengths", [[4], [9, 4]])
def test_utterance_shorter_than_an_unpadded_convolution_is_refused(lengths: list[int]) -> None:
    program = single_conv(torch.ones(2, 4, 5, dtype=torch.int8))
    x = torch.zeros(len(lengths), 4, max(lengths), dtype=torch.int8)
    with pytest.raises(InputError, match="too short for layer conv"):
        run(program, x, torch.tensor(lengths))
