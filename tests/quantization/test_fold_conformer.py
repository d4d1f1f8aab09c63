"""A Conformer from its modules to an integer program: the same function, then the same integers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import conformer, lowered_conformer

from zqlib.errors import LoweringError
from zqlib.integer.nonlinear import MAX_EPS
from zqlib.integer.operators import Attention, Conv2d, LayerNorm, Positions, Sigmoid, Swish
from zqlib.integer.program import Operator, Program
from zqlib.integer.reference import run
from zqlib.integer.storage import load_program, save_program
from zqlib.integer.tensor_type import ACCUMULATOR, TensorType
from zqlib.models.conformer import ConformerCTC
from zqlib.quantization.fold_conformer import fold_conformer
from zqlib.quantization.scheme import QuantScheme, preset

N_MELS, CLASSES = 20, 9
LENGTHS = torch.tensor([120, 77, 9])


@pytest.fixture(scope="module")
def network() -> ConformerCTC:
    return conformer()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    values = torch.randn(3, N_MELS, 120, generator=torch.Generator().manual_seed(5))
    return values * (torch.arange(120) < LENGTHS[:, None])[:, None]


def lowered(
    network: ConformerCTC, features: torch.Tensor, scheme: QuantScheme
) -> tuple[Program, torch.Tensor]:
    """The program, and the quantized features."""
    return lowered_conformer(network, features, LENGTHS, scheme)


@pytest.fixture(scope="module")
def w8a8(network: ConformerCTC, features: torch.Tensor) -> tuple[Program, torch.Tensor]:
    return lowered(network, features, preset("w8a8"))


@pytest.mark.parametrize("xscaling", [True, False])
def test_the_graph_is_the_network(
    network: ConformerCTC, features: torch.Tensor, xscaling: bool
) -> None:
    other = ConformerCTC(replace(network.config, xscaling=xscaling)).eval()
    other.load_state_dict(network.state_dict())
    logits, lengths = fold_conformer(other, QuantScheme()).run(features, LENGTHS)
    expected, expected_lengths = other(features, LENGTHS)
    assert torch.equal(lengths, expected_lengths)
    actual = logits.transpose(1, 2).log_softmax(-1)
    for row, wanted, valid in zip(actual, expected, lengths, strict=True):
        assert (row[:valid] - wanted[:valid]).abs().max() < 1e-4


@pytest.mark.parametrize(("bits", "least_db"), [(8, 20.0), (6, 8.0)])
def test_integers_follow_the_float_logits(
    network: ConformerCTC, features: torch.Tensor, bits: int, least_db: float
) -> None:
    program, quantized = lowered(network, features, preset(f"w{bits}a{bits}"))
    output = run(program, quantized, LENGTHS)  # under the guard against floating point
    logits, lengths = fold_conformer(network, QuantScheme()).run(features, LENGTHS)
    assert torch.equal(output.lengths, lengths)
    for row, wanted, valid in zip(output.logits, logits, lengths, strict=True):
        actual, expected = row[:, :valid].double(), wanted[:, :valid].double()
        gain = (actual * expected).sum() / actual.square().sum()  # the scale is not in the program
        error = (gain * actual - expected).square().sum() / expected.square().sum()
        assert -10 * torch.log10(error) > least_db


def test_a_padded_batch_gives_the_integers_of_each_alone(
    w8a8: tuple[Program, torch.Tensor],
) -> None:
    program, quantized = w8a8
    together = run(program, quantized, LENGTHS)
    for row, length, logits, tokens, valid in zip(
        quantized, LENGTHS, together.logits, together.tokens, together.lengths, strict=True
    ):
        alone = run(program, row[None, :, :length], length[None])
        assert torch.equal(alone.logits[0], logits[:, :valid])
        assert torch.equal(alone.tokens[0], tokens[:valid])


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w6a6"])
def test_save_and_load_give_the_same_integers(
    network: ConformerCTC, features: torch.Tensor, name: str, tmp_path: Path
) -> None:
    program, quantized = lowered(network, features, preset(name))
    save_program(tmp_path / "a.zq", program, {})
    loaded, _, _ = load_program(tmp_path / "a.zq")
    expected, actual = (run(p, quantized, LENGTHS) for p in (program, loaded))
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.tokens, expected.tokens)
    save_program(tmp_path / "b.zq", loaded, {})
    assert (tmp_path / "a.zq").read_bytes() == (tmp_path / "b.zq").read_bytes()


def test_the_stream_is_never_clipped(w8a8: tuple[Program, torch.Tensor]) -> None:
    program, _ = w8a8
    streams = {n: t for n, t in program.tensors.items() if n.endswith("stream")}
    assert len(streams) == 1 + 2 * 4
    for kind in streams.values():
        assert (kind.dtype, kind.high) == (torch.int32, 2**23 - 1)


@pytest.mark.parametrize(
    "scheme", [QuantScheme(stream_bits=8, gate_bits=8), QuantScheme(stream_bits=12, gate_bits=12)]
)
def test_widths_are_the_schemes(
    network: ConformerCTC, features: torch.Tensor, scheme: QuantScheme
) -> None:
    program, quantized = lowered(network, features, scheme)
    wide = ("stream", "0.out", "gate", "hidden", "depthwise")
    for name, kind in program.tensors.items():
        if name.endswith(wide):
            assert kind.high == 2 ** (scheme.stream_bits - 1) - 1
            assert kind.dtype == (torch.int8 if scheme.stream_bits == 8 else torch.int32)
    run(program, quantized, LENGTHS)


def find(program: Program, kind: type[Operator]) -> Any:
    return next(o for o in program.operators if isinstance(o, kind))


def broken(program: Program, operator: Any, **fields: Any) -> None:
    """Build the program with another operator in the place of one; raises."""
    other = replace(operator, **fields)
    replace(program, operators=tuple(other if o is operator else o for o in program.operators))


INT8, INT32 = torch.int8, torch.int32
BREAKS: list[tuple[type, str, Any, str]] = [
    (Conv2d, "weight", lambda o: o.weight[..., :2], "taps, taps"),
    (Conv2d, "weight", lambda o: o.weight.to(torch.int16), "weights are int8"),
    (Conv2d, "weight", lambda o: torch.full_like(o.weight, -128), "within"),
    (Conv2d, "weight_bits", lambda o: 9, "2 to 8 bits"),
    (Conv2d, "bias", lambda o: o.bias[:1], "bias"),
    (Conv2d, "bias", lambda o: torch.full_like(o.bias, 2**31 - 1), "fits int32"),
    (Conv2d, "bands", lambda o: o.bands + 1, "planes times bands"),
    (Conv2d, "stride", lambda o: 0, "stride"),
    (Conv2d, "stride", lambda o: 1, "writes an accumulator"),
    (Sigmoid, "high", lambda o: 256, "level of the output"),
    (Sigmoid, "high", lambda o: 0, "level of the output"),
    (Sigmoid, "exponent", lambda o: (o.exponent[0], o.exponent[1] * 0), "dyadic"),
    (Swish, "exponent", lambda o: (o.exponent[0].long(), o.exponent[1]), "m is int32"),
    (Swish, "gain", lambda o: (o.gain[0] - 2**30, o.gain[1]), "dyadic"),
    (Positions, "table", lambda o: o.table.to(INT32), "table of int8"),
    (Positions, "table", lambda o: o.table[:, 1:].contiguous(), "table's channels"),
    (Positions, "table", lambda o: torch.full_like(o.table, -128), "change its sign"),
    (Positions, "table", lambda o: o.table[:1].repeat(2**16, 1), "rows"),
    (Attention, "heads", lambda o: 3, "evenly"),
    (Attention, "heads", lambda o: 0, "evenly"),
    (Attention, "content_bias", lambda o: o.content_bias[1:], "bias"),
    (Attention, "distance_bias", lambda o: o.distance_bias + 2**24, "scores fit"),
    (Attention, "content", lambda o: (o.content[0], o.content[1] * 0 + 7), "dyadic"),
    (Attention, "exponent", lambda o: (o.exponent[0] // 2**20, o.exponent[1]), "dyadic"),
    (Attention, "reads", lambda o: (*o.reads[:3], o.reads[0]), "same frames"),
    (Attention, "reads", lambda o: (o.reads[3], *o.reads[1:]), "same frames"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), BREAKS)
def test_every_rule_of_an_operator_is_held(
    w8a8: tuple[Program, torch.Tensor], kind: type, field: str, value: Any, message: str
) -> None:
    operator = find(w8a8[0], kind)
    broken(w8a8[0], operator)  # as it is, it passes
    with pytest.raises(LoweringError, match=message):
        broken(w8a8[0], operator, **{field: value(operator)})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("m", lambda c: c.m[1:], "m is int32"),
        ("m", lambda c: c.m.long(), "m is int32"),
        ("e", lambda c: c.e * 0, "e is within"),
        ("offset", lambda c: c.offset + 2**62, "offset"),
        ("eps", lambda c: MAX_EPS, "eps"),
        ("eps", lambda c: -1, "eps"),
    ],
)
def test_every_rule_of_a_layer_norm_is_held(
    w8a8: tuple[Program, torch.Tensor], field: str, value: Any, message: str
) -> None:
    norm = find(w8a8[0], LayerNorm)
    constants = replace(norm.constants, **{field: value(norm.constants)})
    with pytest.raises(LoweringError, match=message):
        broken(w8a8[0], norm, constants=constants)


@pytest.mark.parametrize(
    ("suffix", "kind", "message"),
    [
        ("glu.acc", ACCUMULATOR(15), "product writes an accumulator"),
        ("conv.swish", TensorType(16, torch.int32, -8, 7), "writes int8"),
        ("conv.swish", TensorType(15, torch.int8, -8, 7), "keeps the channels"),
        ("conv.gate", ACCUMULATOR(16), "at most 17 bits"),
        ("out", TensorType(15, torch.int8, -128, 127), "keeps its channels"),
    ],
)
def test_types_that_do_not_fit_are_refused(
    w8a8: tuple[Program, torch.Tensor], suffix: str, kind: TensorType, message: str
) -> None:
    program = w8a8[0]
    name = next(n for n in reversed(program.tensors) if n.endswith(suffix))
    with pytest.raises(LoweringError, match=message):
        replace(program, tensors={**program.tensors, name: kind})
