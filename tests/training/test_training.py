"""Training: the loss falls, an interrupted run ends as an uninterrupted one, errors are clear."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import zqlib
from zqlib.audio import MelConfig, pad_features
from zqlib.corpora import mini
from zqlib.corpora.espeak import SpeechRequest, speak
from zqlib.corpora.manifest import Utterance, write_manifest
from zqlib.errors import InputError
from zqlib.files import read_json, sha256_file
from zqlib.models import load_model
from zqlib.models.conformer import ConformerConfig
from zqlib.models.jasper import BlockConfig
from zqlib.models.nemo import read_nemo
from zqlib.training import TrainingConfig, loop, train
from zqlib.training.data import Example, distort, load_examples, make_batch, plan_epoch

TINY = TrainingConfig(
    blocks=(
        BlockConfig(32, 1, 11, stride=2, separable=True),
        BlockConfig(32, 2, 11, dropout=0.1, residual=True, separable=True),
        BlockConfig(48, 1, 1),
    ),
    steps=12,
    batch_size=4,
    learning_rate=5e-3,
    bfloat16=False,
    mini_utterances=10,
    mini_held_out=2,
    mini_variants=2,
    an4_variants=2,
    an4_repeats=2,
    an4_held_out_every=2,
    checkpoint_every=4,
    threads=1,
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mini corpus and a stand-in for AN4: four speakers, a folder each."""
    root = tmp_path_factory.mktemp("corpora")
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "SPLIT_SIZES", {"train": 1, "mini-clean": 2, "mini-other": 2})
    mini.build_mini_corpus(
        root / "mini",
        ["train", "mini-clean", "mini-other"],
        TINY.seed,
        {"train": TINY.mini_utterances, "mini-clean": 2, "mini-other": 2},
    )
    utterances = []
    for speaker in ("f1", "f2", "m1", "m2"):
        path = root / "an4" / speaker / "a.wav"
        path.parent.mkdir(parents=True)
        waveform = speak(SpeechRequest("enter five", variant=speaker))
        soundfile.write(path, waveform, 16000)
        utterances.append(Utterance(path, len(waveform) / 16000, "enter five"))
    write_manifest(root / "an4" / "train.jsonl", utterances)
    return root


@pytest.fixture
def work_dir(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loop, "SPLIT_SIZES", {"train": 1, "mini-clean": 2, "mini-other": 2})
    shutil.copytree(corpora, tmp_path / "work")
    return tmp_path / "work"


def test_loss_falls_and_the_archive_loads(work_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.nemo"
    an4 = work_dir / "an4" / "train.jsonl"
    record = train(TINY, output, work_dir, an4_train=an4, an4_test=an4)
    losses = [entry["loss"] for entry in record["history"]]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert json.loads(output.with_suffix(".json").read_text()) == record
    assert set(record["tests"]) == {"mini-clean", "mini-other", "an4-test"}
    assert set(record["data_sha256"]) == {"train", "mini-clean", "mini-other", "an4-train"}

    model = load_model(output)
    assert model.family == "quartznet"
    assert model.front_end.config == MelConfig()
    assert len(model.labels) == 28
    state = model.network.state_dict()
    assert state["encoder.encoder.0.mconv.2.num_batches_tracked"] == record["kept_step"]


DENSE = (
    BlockConfig(16, 1, 11, stride=2),
    BlockConfig(16, 2, 5, residual=True, residual_dense=True),
    BlockConfig(16, 1, 5, residual=True, residual_dense=True),
    BlockConfig(24, 1, 1),
)
CONFORMER = ConformerConfig(64, 1, 16, 2, 28, 4, conv_kernel=5, dropout=0.1)


@pytest.mark.parametrize(
    ("family", "change"),
    [("jasper", {"blocks": DENSE}), ("conformer", {"conformer": CONFORMER, "bfloat16": True})],
    ids=["jasper", "conformer"],
)
def test_other_families_learn_and_nemo_restores_them(
    work_dir: Path, tmp_path: Path, family: str, change: dict[str, Any]
) -> None:
    from nemo.collections.asr.models import ASRModel

    config = replace(TINY, **change)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    record = train(config, tmp_path / "tiny.nemo", work_dir)
    losses = [entry["loss"] for entry in record["history"]]
    assert losses[-1] < 0.9 * losses[0]
    ours = load_model(tmp_path / "tiny.nemo")
    assert ours.family == family
    theirs = ASRModel.restore_from(str(tmp_path / "tiny.nemo"), map_location="cpu").eval()
    waveform = torch.randn(1, 16000, generator=torch.Generator().manual_seed(1)) * 0.1
    features, lengths = pad_features([ours.front_end(waveform[0])], 16)
    with torch.no_grad():
        actual, frames = ours.network(features, lengths)
        expected, _, _ = theirs(
            input_signal=waveform, input_signal_length=torch.tensor([waveform.shape[1]])
        )
    valid = int(frames)
    assert (actual[0, :valid] - expected[0, :valid]).abs().max() < 1e-4


class _Killed(Exception):
    pass


def test_interrupted_run_ends_as_an_uninterrupted_one(
    work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an4 = work_dir / "an4" / "train.jsonl"
    train(TINY, tmp_path / "whole.nemo", work_dir, an4_train=an4)
    (work_dir / "checkpoint.pt").unlink()

    take_step = loop._Run.take_step

    def die_at_six(run: loop._Run, batch: loop.Batch) -> float:
        if run.step == 6:
            raise _Killed
        return take_step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "take_step", die_at_six)
        with pytest.raises(_Killed):
            train(TINY, tmp_path / "resumed.nemo", work_dir, an4_train=an4)
    assert not (tmp_path / "resumed.nemo").exists()
    steps = []

    def count(run: loop._Run, batch: loop.Batch) -> float:
        steps.append(run.step)
        return take_step(run, batch)

    monkeypatch.setattr(loop._Run, "take_step", count)
    torch.manual_seed(99)  # the state of the global generator must not matter
    train(TINY, tmp_path / "resumed.nemo", work_dir, an4_train=an4)
    assert steps == list(range(4, 12))
    whole = read_nemo(tmp_path / "whole.nemo").state
    resumed = read_nemo(tmp_path / "resumed.nemo").state
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_checkpoint_of_another_run_is_refused(work_dir: Path, tmp_path: Path) -> None:
    short = TrainingConfig.from_json({**TINY.to_json(), "steps": 2})
    train(short, tmp_path / "a.nemo", work_dir)
    with pytest.raises(InputError, match="another training run"):
        train(TINY, tmp_path / "a.nemo", work_dir)
    (work_dir / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="damaged"):
        train(TINY, tmp_path / "a.nemo", work_dir)


def test_second_round_starts_from_the_first(work_dir: Path, tmp_path: Path) -> None:
    short = TrainingConfig.from_json({**TINY.to_json(), "steps": 2})
    train(short, tmp_path / "first.nemo", work_dir)
    still = TrainingConfig.from_json({**short.to_json(), "steps": 1, "learning_rate": 1e-9})
    second = train(
        still, tmp_path / "second.nemo", tmp_path / "second", initial=tmp_path / "first.nemo"
    )
    assert second["earlier_round"]["config"] == short.to_json()
    assert second["data_sha256"]["initial"] == second["earlier_round"]["checkpoint_sha256"]
    first = read_nemo(tmp_path / "first.nemo").state
    for key, value in read_nemo(tmp_path / "second.nemo").state.items():
        if value.is_floating_point() and "running" not in key:
            torch.testing.assert_close(value, first[key], rtol=0, atol=1e-6)
    wider = TrainingConfig.from_json(
        {**short.to_json(), "blocks": [{"filters": 8, "repeat": 1, "kernel": 3}]}
    )
    with pytest.raises(InputError):
        train(wider, tmp_path / "x.nemo", tmp_path / "x", initial=tmp_path / "first.nemo")


def test_features_are_computed_once(corpora: Path, tmp_path: Path) -> None:
    utterances = loop.read_manifest(corpora / "mini" / "mini-clean.jsonl")
    front_end = loop.MelFrontEnd(MelConfig())
    fresh = load_examples(utterances, 2, front_end, 3, tmp_path / "cache.pt")
    cached = load_examples(utterances, 2, front_end, 3, tmp_path / "cache.pt")
    for ours, expected in zip(cached, fresh, strict=True):
        assert ours.text == expected.text
        assert torch.equal(ours.target, expected.target)
        assert len(ours.variants) == 2
        assert all(map(torch.equal, ours.variants, expected.variants))


def test_config_round_trips_through_json() -> None:
    assert TrainingConfig.from_json(json.loads(json.dumps(TINY.to_json()))) == TINY
    assert TrainingConfig.from_json({}) == TrainingConfig()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 3}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"an4_held_out_every": 1}, "an4_held_out_every"),
        ({"mini_held_out": 2400, "mini_utterances": 2400}, "mini_held_out"),
        ({"blocks": []}, "block"),
        ({"blocks": [{"filters": 3}]}, "malformed"),
        ({"conformer": {"d_model": 16}}, "malformed"),
        ({"conformer": {**vars(CONFORMER), "n_mels": 80}}, "64 mels and 28 classes"),
        ({"steps": "many"}, "malformed"),
    ],
)
def test_bad_configs_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TrainingConfig.from_json(change)


def test_default_network_is_a_small_quartznet() -> None:
    blocks = TrainingConfig().blocks
    network = loop.JasperCTC(loop.JasperConfig(64, blocks, len(loop.LABELS)))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert 0.8e6 < parameters < 1.2e6
    assert all(block.separable for block in blocks[:-1])


def example(frames: int, variants: int = 3) -> Example:
    generator = torch.Generator().manual_seed(frames)
    features = tuple(torch.randn(64, frames, generator=generator).half() for _ in range(variants))
    return Example(features, torch.tensor([1, 2, 3]), "abc")


def test_an_epoch_visits_every_example_as_often_as_asked() -> None:
    examples = [example(100 + 7 * i) for i in range(12)]
    repeats = [1] * 6 + [3] * 6
    plan = plan_epoch(examples, repeats, batch_size=4, seed=1, epoch=0)
    visits = [visit for batch in plan for visit in batch]
    assert [sum(index == i for index, _ in visits) for i in range(12)] == repeats
    assert len(set(visits)) == len(visits)  # three variants, three repeats: all different
    assert plan == plan_epoch(examples, repeats, batch_size=4, seed=1, epoch=0)
    assert plan != plan_epoch(examples, repeats, batch_size=4, seed=1, epoch=1)


def test_too_few_examples_for_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="fewer utterances"):
        plan_epoch([example(50)], [1], batch_size=4, seed=0, epoch=0)


def test_batches_are_padded_masked_and_seeded() -> None:
    examples = [example(90), example(120)]
    visits = [(0, 1), (1, 2)]
    batch = make_batch(examples, visits, pad_to=16, mask=(9, 8), seed=0, step=5)
    assert batch.features.shape[:2] == (2, 64)
    assert batch.features.shape[2] % 16 == 0
    for row, length, (index, _) in zip(batch.features, batch.lengths, visits, strict=True):
        frames = examples[index].variants[0].shape[1]
        assert 0.89 * frames < length < 1.11 * frames
        assert (row[:, length:] == 0).all()
        assert row[:, :length].abs().sum() > 0
    assert batch.target_lengths.tolist() == [3, 3]
    again = make_batch(examples, visits, pad_to=16, mask=(9, 8), seed=0, step=5)
    assert torch.equal(batch.features, again.features)
    other = make_batch(examples, visits, pad_to=16, mask=(9, 8), seed=0, step=6)
    assert other.features.shape != batch.features.shape or not torch.equal(
        batch.features, other.features
    )


def test_distortion_keeps_audio_finite_and_changes_it() -> None:
    waveform = speak(SpeechRequest("three nine"))
    for seed in range(10):
        distorted = distort(waveform, np.random.default_rng(seed))
        assert np.isfinite(distorted).all()
        assert 0.8 < len(distorted) / len(waveform) < 1.25
        assert distorted.dtype == np.float32
        assert not np.array_equal(distorted[:1000], waveform[:1000])
    again = [distort(waveform, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*again)


def test_foreign_characters_in_a_transcript_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(8000, dtype=np.float32), 16000)
    with pytest.raises(InputError, match="other than a-z"):
        load_examples([Utterance(path, 0.5, "Über 5")], 1, loop.MelFrontEnd(MelConfig()), 0)


FAMILIES = {"mini-quartznet": ("quartznet", 20), "mini-jasper": ("jasper", 20),
            "mini-conformer": ("conformer", 25)}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_committed_checkpoints_are_those_of_their_records(name: str) -> None:
    path = Path(zqlib.__file__).parent / "checkpoints" / f"{name}.nemo"
    record = read_json(path.with_suffix(".json"))
    family, most_an4_wer_pct = FAMILIES[name]
    assert record["checkpoint_sha256"] == sha256_file(path)
    assert path.stat().st_size <= 5_000_000
    tests = record["tests"]
    assert tests["mini-clean"]["wer_pct"] <= 5
    assert tests["an4-test"]["utterances"] == 130
    assert tests["an4-test"]["wer_pct"] <= most_an4_wer_pct
    model = load_model(path)
    assert model.family == family
    assert sum(p.numel() for p in model.network.parameters()) == record["parameters"]
    config = TrainingConfig.from_json(record["config"]).to_json()
    assert config.items() >= record["config"].items()
