"""Calibration data: synthetic, noise or real, each with its description."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import SYNTHESIS, checkpoint, write_audio, write_corpus

from zqlib.audio import audio_features
from zqlib.calibration_data import (
    CALIBRATIONS,
    calibration_batches,
    synthesis_cache,
    synthesis_config,
)
from zqlib.corpora.manifest import Utterance, read_manifest, write_manifest
from zqlib.errors import InputError
from zqlib.files import sha256_file
from zqlib.models import CTCModel
from zqlib.synthesis import REDUCED, SynthesisConfig, synthesize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CTCModel:
    return checkpoint(tmp_path_factory.mktemp("model"))


def test_synthetic(model: CTCModel, tmp_path: Path) -> None:
    pairs, details = calibration_batches(
        model, "synthetic", SYNTHESIS, cache=tmp_path / "cache", progress=False
    )
    (truth,) = synthesize(model.network, 64, SYNTHESIS, progress=False)
    assert torch.equal(pairs[0][0], truth.features) and torch.equal(pairs[0][1], truth.lengths)
    assert details == {"kind": "synthetic", "synthesis": SYNTHESIS.to_json()}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_default_cache_is_the_users(
    model: CTCModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZQ_CACHE", str(tmp_path / "zq"))
    calibration_batches(model, "synthetic", SYNTHESIS, progress=False)
    assert len(list((tmp_path / "zq" / "synthesis").iterdir())) == 1
    monkeypatch.delenv("ZQ_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert synthesis_cache() == tmp_path / "home" / ".cache" / "zqlib" / "synthesis"


def test_noise_is_as_much_as_the_synthesis_would_make(model: CTCModel) -> None:
    config = SynthesisConfig(batches=3, batch_size=2, frames=40, min_frames=40, seed=5)
    pairs, details = calibration_batches(model, "noise", config)
    assert [features.shape for features, _ in pairs] == [(2, 64, 40)] * 3
    assert details == {"kind": "noise", "size": [3, 2, 40], "seed": 5}


def test_real_takes_the_first_twenty_recordings(model: CTCModel, tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, 2)
    utterances = read_manifest(manifest)
    write_manifest(manifest, utterances * 12)
    pairs, details = calibration_batches(model, "real", SYNTHESIS, manifest)
    assert len(pairs) == 20
    for (features, lengths), utterance in zip(pairs, utterances * 10, strict=True):
        assert torch.equal(features[0], audio_features(utterance.audio_path, model.front_end))
        assert lengths.tolist() == [features.shape[2]]
    assert details == {
        "kind": "real",
        "utterances": 20,
        "manifest_sha256": sha256_file(manifest),
    }


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_descriptions_are_json(model: CTCModel, tmp_path: Path, kind: str) -> None:
    manifest = write_corpus(tmp_path, 1) if kind == "real" else None
    _, details = calibration_batches(model, kind, SYNTHESIS, manifest, tmp_path, progress=False)
    assert json.loads(json.dumps(details)) == details
    assert details["kind"] == kind


def test_misfits_are_refused(model: CTCModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'best' is unknown"):
        calibration_batches(model, "best", SYNTHESIS)
    with pytest.raises(InputError, match="needs a manifest"):
        calibration_batches(model, "real", SYNTHESIS)
    for kind in ("synthetic", "noise"):
        with pytest.raises(InputError, match="only that, needs a manifest"):
            calibration_batches(model, kind, SYNTHESIS, write_corpus(tmp_path, 1))


def test_recordings_that_are_too_short_are_named(model: CTCModel, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "short.wav", 0.015)
    write_manifest(tmp_path / "m.jsonl", [Utterance(path, 0.015, "a")])
    with pytest.raises(InputError, match=r"short\.wav"):
        calibration_batches(model, "real", SYNTHESIS, tmp_path / "m.jsonl")


def test_settings_by_name(tmp_path: Path) -> None:
    assert synthesis_config("reduced") == REDUCED
    authors = synthesis_config("authors")
    assert (authors.batches, authors.steps, authors.deviation) == (20, 200, "authors")
    assert synthesis_config("authors", steps=5, seed=None).steps == 5
    (tmp_path / "mine.json").write_text('{"steps": 7, "seed": 3}')
    mine = synthesis_config(str(tmp_path / "mine.json"), steps=None, seed=None, batches=2)
    assert mine == SynthesisConfig(steps=7, seed=3, batches=2)


@pytest.mark.parametrize("content", ['{"odd": 1}', "[]", "5", "{", '{"steps": "many"}', "null"])
def test_bad_settings_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError):
        synthesis_config(str(tmp_path / "bad.json"))


def test_absent_and_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        synthesis_config(str(tmp_path / "absent.json"))
    with pytest.raises(InputError, match="'best' is unknown"):
        synthesis_config("best")
    with pytest.raises(InputError, match="steps"):
        synthesis_config("reduced", steps=-1)
