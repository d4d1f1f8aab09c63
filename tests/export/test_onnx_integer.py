"""Integer programs in ONNX Runtime: the integers of the reference, and no float anywhere."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_conformer
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import BLOCKS, N_MELS, integers, lowered, reproducible, single_conv
from torch import Tensor

import zqlib
from zqlib.audio import audio_features, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.export.inspection import count_layers, float_tensors, optimized
from zqlib.export.onnx_integer import export_integer
from zqlib.export.runtime import open_session
from zqlib.integer.program import Program
from zqlib.integer.reference import ProgramOutput, run
from zqlib.integer.tensor_type import TensorType
from zqlib.models import load_model
from zqlib.quantization.scheme import QuantScheme, preset, usual_scheme
from zqlib.quantized_model import quantize

CHECKPOINTS = sorted((Path(zqlib.__file__).parent / "checkpoints").glob("*.nemo"))
SCHEMES = {
    "w8a8": preset("w8a8"),
    "w4a6": preset("w4a6"),
    "w2a2": preset("w2a2"),
    "signed": QuantScheme(unsigned_relu=False),
    "partial sums": QuantScheme(residual_sum="partial"),
}
WIDTHS = {
    "w8a8": preset("w8a8"),
    "w4a8": preset("w4a8"),
    "w6a6": preset("w6a6"),
    "narrow": QuantScheme(stream_bits=8, gate_bits=8),
    "medium": QuantScheme(stream_bits=12, gate_bits=12),
}


def in_onnx(session: Any, features: Tensor, lengths: Tensor) -> ProgramOutput:
    outputs = session.run(
        ["tokens", "logits", "output_length"],
        {"features": features.numpy(), "length": lengths.numpy()},
    )
    return ProgramOutput(*map(torch.from_numpy, outputs))


def assert_identical(program: Program, session: Any, features: Tensor, lengths: Tensor) -> None:
    """Tokens, logits and lengths, of frames beyond a length too."""
    expected, actual = run(program, features, lengths), in_onnx(session, features, lengths)
    for name in ("tokens", "logits", "lengths"):
        wanted, got = getattr(expected, name), getattr(actual, name)
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted), name


TINY = {topology: lowered(topology)[0] for topology in BLOCKS}
SESSIONS = {topology: open_session(export_integer(program)) for topology, program in TINY.items()}


@reproducible
@given(
    topology=st.sampled_from(sorted(BLOCKS)),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    beyond=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_padded_batches_are_bit_identical(
    topology: str, lengths: list[int], beyond: int, seed: int
) -> None:
    x = integers((len(lengths), N_MELS, max(lengths) + beyond), -128, 127, torch.int8, seed)
    assert_identical(TINY[topology], SESSIONS[topology], x, torch.tensor(lengths))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("topology", BLOCKS)
def test_every_scheme_is_bit_identical(topology: str, scheme: str) -> None:
    program, _ = lowered(topology, SCHEMES[scheme])
    kind = program.tensors[program.input]
    x = integers((3, N_MELS, 50), kind.low, kind.high, kind.dtype, 6)
    assert_identical(program, open_session(export_integer(program)), x, torch.tensor([50, 31, 2]))


@pytest.fixture(scope="module", params=WIDTHS)
def conformer(request: pytest.FixtureRequest) -> tuple[Program, Tensor]:
    network, features = tiny_conformer.network(), tiny_conformer.features()
    return tiny_conformer.lowered(network, features, WIDTHS[request.param])


def test_a_conformer_is_bit_identical(conformer: tuple[Program, Tensor]) -> None:
    program, quantized = conformer
    session = open_session(export_integer(program))
    assert_identical(program, session, quantized, tiny_conformer.LENGTHS)
    for row, length in zip(quantized, tiny_conformer.LENGTHS, strict=True):
        assert_identical(program, session, row[None, :, :length].contiguous(), length[None])
    kind = program.tensors[program.input]
    loud = integers((2, tiny_conformer.N_MELS, 64), kind.low, kind.high, torch.int8, 3)
    assert_identical(program, session, loud, torch.tensor([64, 3]))


def test_no_tensor_is_of_floating_point(conformer: tuple[Program, Tensor]) -> None:
    for program in (conformer[0], *TINY.values()):
        model = export_integer(program)
        assert float_tensors(model) == []
        assert float_tensors(optimized(model)) == []  # what ONNX Runtime makes of it


def test_all_layers_multiply_integers() -> None:
    count = count_layers(export_integer(TINY["residual"]))
    convolutions = sum("conv" in type(o).__name__.lower() for o in TINY["residual"].operators)
    assert (len(count.integer), count.float, count.float_products) == (convolutions, (), ())


def test_accumulators_reach_the_ends_of_int32() -> None:
    """255 * -127 over 1024 channels, and a bias near the end of what is left of int32."""
    kind = TensorType(1024, torch.uint8, 0, 255)
    weight = torch.full((2, 1024, 3), -127, dtype=torch.int8)
    bias = torch.tensor([-(2**31) + 255 * 127 * 3072 + 1, 5], dtype=torch.int32)
    program = single_conv(weight, bias, kind, padding=1)
    x = torch.full((1, 1024, 9), 255, dtype=torch.uint8)
    session = open_session(export_integer(program))
    assert_identical(program, session, x, torch.tensor([9]))
    assert int(in_onnx(session, x, torch.tensor([9])).logits.min()) == -(2**31) + 1


def test_weights_are_stored_as_int8() -> None:
    program = TINY["residual"]
    model = export_integer(program)
    stored = {t.name: t for t in model.graph.initializer}
    for operator in program.operators:
        if hasattr(operator, "weight"):
            weight = onnx.numpy_helper.to_array(stored[f"{operator.name}.weight"])
            assert torch.equal(torch.from_numpy(weight.copy()), operator.weight)


def test_axes_are_dynamic_and_metadata_is_kept() -> None:
    model = export_integer(TINY["dense"], {"a": "b"})
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes["features"] == ["batch", N_MELS, "frames"]
    assert shapes["length"] == ["batch"]
    assert shapes["tokens"] == ["batch", "output_frames"]
    assert {p.key: p.value for p in model.metadata_props} == {"a": "b"}


def test_the_same_program_gives_the_same_bytes() -> None:
    first, second = (export_integer(TINY["dense residual"]) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_more_frames_than_positions_are_refused() -> None:
    program, _ = tiny_conformer.lowered(
        tiny_conformer.network(), tiny_conformer.features(), preset("w8a8")
    )
    session = open_session(export_integer(program))
    frames = 4 * 2500 + 4
    x = torch.zeros(1, tiny_conformer.N_MELS, frames, dtype=torch.int8)
    with pytest.raises(InputError):
        run(program, x, torch.tensor([frames]))
    with pytest.raises(Exception, match="indices element out of data bounds"):
        in_onnx(session, x, torch.tensor([frames]))


@pytest.mark.parametrize("name", ["quartznet_nemo", "conformer_nemo"])
def test_real_models_on_real_speech_are_bit_identical(
    request: pytest.FixtureRequest, assets: Path, name: str
) -> None:
    model = load_model(request.getfixturevalue(name))
    manifest = read_manifest(assets / "speech/an4/test.jsonl")
    utterances = sorted(manifest, key=lambda u: u.duration_s)[::40]
    features = [audio_features(u.audio_path, model.front_end) for u in utterances]
    scheme = usual_scheme("w8a8", model.family)
    quantized = quantize(model, [pad_features(features)], scheme, {"kind": "real"})
    session = open_session(export_integer(quantized.program))
    x, lengths = pad_features(features)
    assert_identical(quantized.program, session, quantized.quantize_features(x), lengths)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_our_own_checkpoints_are_bit_identical(path: Path) -> None:
    """One of each family, as trained; calibrated and run on loud and quiet noise."""
    model = load_model(path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, model.front_end.config.n_mels, 150, generator=generator)
    x, lengths = x * torch.linspace(0.2, 3, 150), torch.tensor([150, 77])
    scheme = usual_scheme("w8a8", model.family)
    quantized = quantize(model, [(x, lengths)], scheme, {"kind": "noise"})
    exported = export_integer(quantized.program)
    assert float_tensors(exported) == []
    session = open_session(exported)
    assert_identical(quantized.program, session, quantized.quantize_features(x), lengths)
