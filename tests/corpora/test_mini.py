"""The mini corpus: same bytes, disjoint splits, resumed after an interruption."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from zqlib.corpora import mini
from zqlib.corpora.espeak import variants
from zqlib.corpora.manifest import read_manifest
from zqlib.corpora.mini import TEST_VOICES, TRAINING_VOICES, build_mini_corpus
from zqlib.errors import InputError

SIZES = {"train": 12, "mini-clean": 6, "mini-other": 6}
SPLITS = tuple(SIZES)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    build_mini_corpus(root, SPLITS, seed=5, sizes=SIZES)
    return root


def test_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    build_mini_corpus(tmp_path, SPLITS[::-1], seed=5, sizes=SIZES)
    assert contents(tmp_path) == contents(corpus)


def test_another_seed_gives_other_sentences(corpus: Path, tmp_path: Path) -> None:
    paths = build_mini_corpus(tmp_path, ["mini-clean"], seed=6, sizes=SIZES)
    ours = [u.text for u in read_manifest(paths["mini-clean"])]
    assert ours != [u.text for u in read_manifest(corpus / "mini-clean.jsonl")]


def test_manifests_describe_the_audio(corpus: Path) -> None:
    for split, size in SIZES.items():
        utterances = read_manifest(corpus / f"{split}.jsonl")
        assert len(utterances) == size
        for utterance in utterances:
            info = soundfile.info(utterance.audio_path)
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert abs(info.duration - utterance.duration_s) < 1e-3
            samples, _ = soundfile.read(utterance.audio_path)
            assert 0.09 < np.abs(samples).max() <= 0.91


def test_no_transcript_is_in_two_splits_at_full_size() -> None:
    texts = {split: mini._sentences(split, 0, size) for split, size in mini.SPLIT_SIZES.items()}
    assert not set(texts["train"]) & (set(texts["mini-clean"]) | set(texts["mini-other"]))
    assert not set(texts["mini-clean"]) & set(texts["mini-other"])
    for split in ("mini-clean", "mini-other"):
        assert len(set(texts[split])) == len(texts[split])


def test_training_never_hears_the_test_voices() -> None:
    assert not set(TRAINING_VOICES) & set(TEST_VOICES)
    assert set(TRAINING_VOICES) | set(TEST_VOICES) <= set(variants())
    assert len(TRAINING_VOICES) >= 50


def test_voices_follow_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: set[str] = set()
    speak = mini.espeak.speak

    def listen(request: mini.espeak.SpeechRequest, sample_rate: int) -> np.ndarray:
        heard.add(request.variant)
        return speak(request, sample_rate)

    monkeypatch.setattr(mini.espeak, "speak", listen)
    for index in range(10):
        mini._render("mini-other", "two words", np.random.default_rng(index))
    assert heard <= set(TEST_VOICES)
    heard.clear()
    for index in range(10):
        mini._render("mini-clean", "two words", np.random.default_rng(index))
    assert heard <= set(TRAINING_VOICES)


def test_second_build_touches_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    build_mini_corpus(corpus, SPLITS, seed=5, sizes=SIZES)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_interrupted_build_is_continued(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render, calls = mini._render, []

    def die_on_the_fourth(*args: object) -> np.ndarray:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return render(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mini, "_render", die_on_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        build_mini_corpus(tmp_path, ["mini-clean"], seed=5, sizes=SIZES)
    assert not (tmp_path / "mini-clean.jsonl").exists()
    assert len(list((tmp_path / "mini-clean").glob("*.flac"))) == 3

    build_mini_corpus(tmp_path, ["mini-clean"], seed=5, sizes=SIZES)
    assert len(calls) == 4 + 3  # the three files that were done are not made again
    ours = contents(tmp_path)
    assert ours == {name: data for name, data in contents(corpus).items() if "mini-clean" in name}


def test_corpus_made_otherwise_is_made_anew(corpus: Path, tmp_path: Path) -> None:
    build_mini_corpus(tmp_path, ["mini-other"], seed=4, sizes={"mini-other": 9})
    build_mini_corpus(tmp_path, ["mini-other"], seed=5, sizes=SIZES)
    expected = {name: data for name, data in contents(corpus).items() if "mini-other" in name}
    assert contents(tmp_path) == expected


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mini-clean").mkdir()
    (tmp_path / "mini-clean" / "holiday.flac").write_bytes(b"precious")
    with pytest.raises(InputError, match="choose another folder"):
        build_mini_corpus(tmp_path, ["mini-clean"], sizes=SIZES)
    assert (tmp_path / "mini-clean" / "holiday.flac").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"splits": ["dev"]}, "dev"),
        ({"seed": -1}, "seed"),
        ({"sizes": {"mini-clean": 0, "mini-other": 1}}, "mini-clean"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_mini_corpus(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
