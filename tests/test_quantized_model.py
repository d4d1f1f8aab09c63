"""From a float checkpoint to a `.zq` file and back."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, quantized, write_audio

from zqlib.audio import MelConfig, audio_features, pad_features
from zqlib.errors import InputError
from zqlib.integer import reference
from zqlib.integer.operators import Conv1d
from zqlib.integer.storage import load_program, save_program
from zqlib.models import CTCModel, load_model
from zqlib.models.conformer import ConformerConfig, ConformerCTC
from zqlib.models.nemo import write_nemo
from zqlib.quantization.scheme import QuantScheme, preset
from zqlib.quantized_model import QuantizedModel, load_quantized, quantize, weight_widths
from zqlib.recognition import IntegerRecogniser, transcribe
from zqlib.training.config import LABELS, nemo_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CTCModel:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def speech(tmp_path: Path, model: CTCModel) -> tuple[torch.Tensor, torch.Tensor]:
    paths = [write_audio(tmp_path / f"{i}.wav", 0.5 + 0.2 * i, seed=i) for i in range(3)]
    return pad_features([audio_features(path, model.front_end) for path in paths], 16)


def agreement(
    model: CTCModel, integer: QuantizedModel, speech: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Share of the valid frames in which the integer model gives the float model's token."""
    features, lengths = speech
    output = reference.run(integer.program, integer.quantize_features(features), lengths)
    log_probs, float_lengths = model.network(features, lengths)
    assert torch.equal(output.lengths, float_lengths)
    valid = torch.arange(log_probs.shape[1]) < float_lengths[:, None]
    return float((output.tokens == log_probs.argmax(-1))[valid].double().mean())


@pytest.mark.parametrize(
    ("name", "least"), [("w8a8", 0.9), ("w6a6", 0.6), ("w4a8", 0.3), ("w2a2", 0.0)]
)
def test_every_scheme_runs_and_eight_bits_agree_with_float(
    model: CTCModel, speech: tuple[torch.Tensor, torch.Tensor], name: str, least: float
) -> None:
    integer = quantized(model, preset(name))
    assert integer.scheme.name == name
    assert agreement(model, integer, speech) >= least


def test_bits_on_average_are_found_kept_and_repeated(model: CTCModel, tmp_path: Path) -> None:
    first = quantized(model, preset("w4.5g16a8"))
    average, rows = weight_widths(first.program)
    assert 4.2 < average <= 4.5 and len(rows) > 1
    convs = [o for o in first.program.operators if isinstance(o, Conv1d)]
    assert sum(layers for _, layers, _, _ in rows) == len(convs)
    assert first.scheme.layer_bits == {conv.name: conv.weight_bits for conv in convs}
    first.save(tmp_path / "a.zq")
    quantized(model, load_quantized(tmp_path / "a.zq").scheme).save(tmp_path / "b.zq")
    assert (tmp_path / "a.zq").read_bytes() == (tmp_path / "b.zq").read_bytes()


def test_fewer_bits_make_a_smaller_file(model: CTCModel, tmp_path: Path) -> None:
    sizes = []
    for name in ("w8a8", "w4a8", "w2a2"):
        quantized(model, preset(name)).save(tmp_path / f"{name}.zq")
        sizes.append((tmp_path / f"{name}.zq").stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_a_file_gives_the_same_model(
    model: CTCModel, speech: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    before = quantized(model)
    before.save(tmp_path / "a.zq")
    after = load_quantized(tmp_path / "a.zq")
    features, lengths = speech
    assert torch.equal(before.quantize_features(features), after.quantize_features(features))
    x = before.quantize_features(features)
    one = reference.run(before.program, x, lengths)
    two = reference.run(after.program, x, lengths)
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.logits, two.logits)
    assert after.front_end.config == before.front_end.config
    assert torch.equal(after.front_end.filters, before.front_end.filters)
    for name in ("name", "family", "input_scale", "labels", "scheme", "calibration"):
        assert getattr(after, name) == getattr(before, name), name


def test_the_same_model_gives_the_same_bytes(model: CTCModel, tmp_path: Path) -> None:
    for name in ("a.zq", "b.zq"):
        quantized(model).save(tmp_path / name)
    assert (tmp_path / "a.zq").read_bytes() == (tmp_path / "b.zq").read_bytes()


def test_features_are_rounded_half_to_even_and_clamped(model: CTCModel) -> None:
    integer = quantized(model)
    steps = torch.tensor([0, 0.49, 0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 500, -500])
    result = integer.quantize_features(steps * integer.input_scale)
    assert result.dtype == torch.int8
    kind = integer.program.tensors[integer.program.input]
    assert result.tolist() == [0, 0, 0, 2, 2, 0, -2, 127, kind.high, kind.low]


def described(model: CTCModel) -> tuple[QuantizedModel, dict[str, Any]]:
    integer = quantized(model)
    return integer, {
        "name": integer.name,
        "family": integer.family,
        "mel": asdict(integer.front_end.config),
        "input_scale": integer.input_scale,
        "labels": list(integer.labels),
        "scheme": integer.scheme.to_json(),
        "calibration": integer.calibration,
    }


def test_the_description_of_these_tests_is_the_true_one(model: CTCModel, tmp_path: Path) -> None:
    integer, metadata = described(model)
    integer.save(tmp_path / "a.zq")
    assert load_program(tmp_path / "a.zq")[1] == metadata


@pytest.mark.parametrize(
    "missing", ["name", "family", "mel", "input_scale", "labels", "scheme", "calibration"]
)
def test_a_file_without_a_part_of_its_description_is_refused(
    model: CTCModel, tmp_path: Path, missing: str
) -> None:
    integer, metadata = described(model)
    del metadata[missing]
    filters = {"mel_filters": integer.front_end.filters}
    save_program(tmp_path / "a.zq", integer.program, metadata, filters)
    with pytest.raises(InputError, match=rf"a\.zq lacks a sound description.*{missing}"):
        load_quantized(tmp_path / "a.zq")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5), ("input_scale", 0), ("input_scale", -1.0), ("input_scale", "NaN"),
        ("input_scale", "inf"), ("input_scale", "wide"), ("input_scale", None), ("labels", ["a"]),
        ("labels", 5), ("labels", list(range(28))), ("mel", {"sample_rate": 0}),
        ("mel", {"n_mels": 65}), ("mel", {"n_fft": 10**9}), ("mel", {"n_fft": 1024}),
        ("mel", {"window_stride_s": 0.0}), ("mel", {"pad_to": "16"}), ("mel", {"pad_to": -1}),
        ("mel", {"odd": 1}), ("mel", None), ("scheme", {"weight_bits": 9}), ("scheme", {"odd": 1}),
        ("scheme", 5), ("calibration", 5),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_with_an_impossible_description_is_refused(
    model: CTCModel, tmp_path: Path, key: str, value: Any
) -> None:
    """The checksum is right: such a file was made so."""
    integer, metadata = described(model)
    metadata = copy.deepcopy(metadata)
    metadata[key] = metadata[key] | value if key == "mel" and value else value
    filters = {"mel_filters": integer.front_end.filters}
    save_program(tmp_path / "a.zq", integer.program, metadata, filters)
    with pytest.raises(InputError, match=r"a\.zq lacks a sound description"):
        load_quantized(tmp_path / "a.zq")


@pytest.mark.parametrize("filters", [None, torch.ones(64, 10), torch.full((64, 257), torch.nan),
                                     torch.ones(64, 257, dtype=torch.int32)])  # fmt: skip
def test_a_file_without_sound_mel_filters_is_refused(
    model: CTCModel, tmp_path: Path, filters: torch.Tensor | None
) -> None:
    integer, metadata = described(model)
    extra = {} if filters is None else {"mel_filters": filters}
    save_program(tmp_path / "a.zq", integer.program, metadata, extra)
    with pytest.raises(InputError, match=r"a\.zq lacks a sound description"):
        load_quantized(tmp_path / "a.zq")


def test_calibration_on_silence_is_refused(model: CTCModel) -> None:
    silence = [(torch.zeros(1, 64, 32), torch.tensor([32]))]
    with pytest.raises(InputError, match="zero for all calibration data"):
        quantize(model, silence, QuantScheme(), {"kind": "real"})


def test_a_program_that_cannot_be_written_leaves_nothing(model: CTCModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        quantized(model).save(tmp_path / "file" / "a.zq")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_conformer_goes_the_same_way(tmp_path: Path) -> None:
    config = ConformerConfig(64, 1, 16, 2, len(LABELS), 4, conv_kernel=5)
    torch.manual_seed(0)
    network = ConformerCTC(config)
    write_nemo(tmp_path / "small.nemo", nemo_config(config, MelConfig()), network.state_dict())
    model = load_model(tmp_path / "small.nemo")
    integer = quantized(model)
    assert (integer.family, integer.labels) == ("conformer", LABELS)
    integer.save(tmp_path / "small.zq")
    path = write_audio(tmp_path / "a.wav", 1.5)
    texts = [
        list(transcribe(IntegerRecogniser(each), [path]))
        for each in (integer, load_quantized(tmp_path / "small.zq"))
    ]
    assert texts[0] == texts[1]
    speech = pad_features([audio_features(path, model.front_end)])
    assert agreement(model, integer, speech) > 0.7  # random weights: the classes lie close
