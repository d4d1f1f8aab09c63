"""Float and integer recognisers behind one interface, and resumable runs over a manifest."""

import json
from pathlib import Path

import pytest
from checkpoints import checkpoint, quantized, write_audio, write_checkpoint, write_corpus

from zqlib import recognition
from zqlib.audio import audio_features, pad_features
from zqlib.corpora.manifest import read_manifest, write_manifest
from zqlib.errors import InputError
from zqlib.evaluation import Hypothesis, greedy_ctc, read_hypotheses, write_hypotheses
from zqlib.quantized_model import load_quantized
from zqlib.recognition import (
    FloatRecogniser,
    IntegerRecogniser,
    Recogniser,
    load_recogniser,
    recognise_manifest,
    transcribe,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float and an integer model, and a manifest."""
    folder = tmp_path_factory.mktemp("recognition")
    quantized(checkpoint(folder)).save(folder / "tiny0.zq")
    write_corpus(folder, 5)
    return folder


@pytest.fixture(params=["tiny0.nemo", "tiny0.zq"])
def recogniser(folder: Path, request: pytest.FixtureRequest) -> Recogniser:
    return load_recogniser(folder / request.param)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings that are really recognised."""
    names: list[str] = []
    original = recognition.audio_features

    def note(path: Path, *arguments: object, **options: object) -> object:
        names.append(path.stem)
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recognition, "audio_features", note)
    return names


def test_the_suffix_tells_the_kind(folder: Path) -> None:
    decimal = load_recogniser(folder / "tiny0.nemo")
    integer = load_recogniser(folder / "tiny0.zq")
    assert isinstance(decimal, FloatRecogniser) and decimal.engine == "float"
    assert isinstance(integer, IntegerRecogniser) and integer.engine == "reference"
    assert decimal.name == integer.name == "tiny0"
    assert decimal.labels == integer.labels


def test_a_float_model_is_heard_as_its_network_says(folder: Path) -> None:
    model = checkpoint(folder)
    path = folder / "audio" / "0.wav"
    features, lengths = pad_features([audio_features(path, model.front_end)], 16)
    log_probs, out_lengths = model.network(features, lengths)
    tokens = log_probs[0, : out_lengths[0]].argmax(-1).tolist()
    (text,) = transcribe(FloatRecogniser(model), [path])
    assert text == greedy_ctc(tokens, model.labels)
    assert len(text) > 3  # or the comparisons in this file would say nothing


def test_integer_texts_do_not_depend_on_the_batch(folder: Path) -> None:
    recogniser = load_recogniser(folder / "tiny0.zq")
    alone = recognise_manifest(recogniser, folder / "test.jsonl", progress=False)
    assert len({item.text for item in alone}) > 1
    for size in (2, 3, 8):
        again = recognise_manifest(
            recogniser, folder / "test.jsonl", batch_size=size, progress=False
        )
        assert again == alone


def test_hypotheses_name_their_utterances(folder: Path, recogniser: Recogniser) -> None:
    found = recognise_manifest(recogniser, folder / "test.jsonl", progress=False)
    assert [item.utterance for item in found] == [f"audio/{index}.wav" for index in range(5)]
    assert [item.reference for item in found] == [
        utterance.text for utterance in read_manifest(folder / "test.jsonl")
    ]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("cut", [0, 1, 7, -1])
def test_a_partial_file_is_continued(
    folder: Path, tmp_path: Path, recogniser: Recogniser, heard: list[str], cut: int,
    batch_size: int,
) -> None:  # fmt: skip
    """After two whole lines, `cut` bytes of the third (-1: all but its end)."""
    partial = tmp_path / "new" / "partial.jsonl"
    manifest = folder / "test.jsonl"
    undisturbed = recognise_manifest(
        recogniser, manifest, partial=partial, batch_size=batch_size, progress=False
    )
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    partial.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    heard.clear()
    again = recognise_manifest(
        recogniser, manifest, partial=partial, batch_size=batch_size, progress=False
    )
    assert heard == ["2", "3", "4"]
    assert again == undisturbed == read_hypotheses(partial)
    assert partial.read_bytes() == b"".join(lines)


def test_an_interruption_keeps_what_was_heard(
    folder: Path, tmp_path: Path, recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "partial.jsonl"
    undisturbed = recognise_manifest(recogniser, folder / "test.jsonl", progress=False)
    original = recognition.audio_features

    def interrupt(path: Path, *arguments: object, **options: object) -> object:
        if path.stem == "3":
            raise KeyboardInterrupt
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(recognition, "audio_features", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recognise_manifest(recogniser, folder / "test.jsonl", partial=partial, progress=False)
    assert read_hypotheses(partial) == undisturbed[:3]
    assert undisturbed == recognise_manifest(
        recogniser, folder / "test.jsonl", partial=partial, progress=False
    )


@pytest.mark.parametrize("kind", ["more", "name", "reference", "order", "garbage", "binary"])
def test_a_partial_file_of_other_utterances_is_not_taken(
    folder: Path, tmp_path: Path, recogniser: Recogniser, kind: str
) -> None:
    manifest, partial = folder / "test.jsonl", tmp_path / "partial.jsonl"
    true = recognise_manifest(recogniser, manifest, progress=False)
    lie = Hypothesis(true[0].utterance, true[0].reference, "a lie")
    other = {
        "more": [lie, *true[1:], Hypothesis("audio/9.wav", "more", "more")],
        "name": [Hypothesis("other.wav", lie.reference, lie.text)],
        "reference": [Hypothesis(lie.utterance, "something else", lie.text)],
        "order": [true[1], lie],
    }
    if kind in other:
        write_hypotheses(partial, other[kind])
    else:
        partial.write_bytes({"garbage": b"garbage\n", "binary": b"\xff\xfe\n"}[kind])
    assert recognise_manifest(recogniser, manifest, partial=partial, progress=False) == true
    assert read_hypotheses(partial) == true


def test_a_whole_partial_file_asks_for_no_work(
    folder: Path, tmp_path: Path, recogniser: Recogniser, heard: list[str]
) -> None:
    for _ in range(2):
        recognise_manifest(
            recogniser, folder / "test.jsonl", partial=tmp_path / "p.jsonl", progress=False
        )
    assert heard == ["0", "1", "2", "3", "4"]


def test_bad_audio_is_named(folder: Path, tmp_path: Path, recogniser: Recogniser) -> None:
    good = folder / "audio" / "0.wav"
    bad = {
        "slow.wav": write_audio(tmp_path / "slow.wav", sample_rate=8000),
        "stereo.wav": write_audio(tmp_path / "stereo.wav", channels=2),
        "empty.wav": write_audio(tmp_path / "empty.wav", 0),
        "short.wav": write_audio(tmp_path / "short.wav", 0.015),
        "absent.wav": tmp_path / "absent.wav",
    }
    (tmp_path / "text.wav").write_text("no audio")
    for name, path in {**bad, "text.wav": tmp_path / "text.wav"}.items():
        texts = transcribe(recogniser, [good, path, good])
        assert next(texts)  # what comes before is heard
        with pytest.raises(InputError, match=name):
            next(texts)


def test_other_rates_are_converted_on_demand(tmp_path: Path, recogniser: Recogniser) -> None:
    path = write_audio(tmp_path / "slow.wav", sample_rate=8000)
    assert len(list(transcribe(recogniser, [path], resample=True))) == 1


def test_a_missing_recording_of_a_manifest_is_named(
    folder: Path, tmp_path: Path, recogniser: Recogniser
) -> None:
    utterances = read_manifest(folder / "test.jsonl")
    write_manifest(tmp_path / "test.jsonl", utterances)
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    entry = json.loads(lines[1]) | {"audio_filepath": "gone.wav"}
    (tmp_path / "test.jsonl").write_text("\n".join([lines[0], json.dumps(entry), *lines[2:]]))
    with pytest.raises(InputError, match=r"gone\.wav does not exist"):
        recognise_manifest(recogniser, tmp_path / "test.jsonl", progress=False)


@pytest.mark.parametrize(
    ("name", "engine", "message"),
    [
        ("tiny0.nemo", "reference", "quantize it"),
        ("tiny0.zq", "float", r"give the \.nemo file"),
        ("tiny0.nemo", "cuda", "unknown"),
        ("tiny0.zq", "cuda", "unknown"),
        ("test.jsonl", None, "neither"),
        ("absent.zq", None, "does not exist"),
        ("absent.nemo", None, "does not exist"),
    ],
)
def test_misfits_are_refused(folder: Path, name: str, engine: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recogniser(folder / name, engine)


def test_the_compiled_engine_hears_the_same(folder: Path) -> None:
    model = load_quantized(folder / "tiny0.zq")
    texts = [
        [
            item.text
            for item in recognise_manifest(
                recogniser, folder / "test.jsonl", batch_size=2, progress=False
            )
        ]
        for recogniser in (IntegerRecogniser(model), IntegerRecogniser(model, "cpu", threads=2))
    ]
    assert texts[0] == texts[1] and len({*texts[0]}) > 1


def test_an_engine_that_cannot_run_is_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="engine triton needs an NVIDIA GPU"):
        load_recogniser(folder / "tiny0.zq", "triton")


def test_threads_of_another_engine_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="belongs to the engine cpu"):
        load_recogniser(folder / "tiny0.zq", threads=2)


def test_engines_may_be_named(folder: Path) -> None:
    assert load_recogniser(folder / "tiny0.zq", "cpu").engine == "cpu"
    assert load_recogniser(folder / "tiny0.nemo", "float").engine == "float"
    assert load_recogniser(folder / "tiny0.zq", "reference").engine == "reference"
    assert load_recogniser(folder / "tiny0.zq", "triton").engine == "triton"


@pytest.mark.parametrize("size", [0, -1])
def test_impossible_batches_are_refused(recogniser: Recogniser, size: int, folder: Path) -> None:
    with pytest.raises(InputError, match="batch size"):
        list(transcribe(recogniser, [folder / "audio" / "0.wav"], batch_size=size))


def test_a_text_file_is_no_model(tmp_path: Path) -> None:
    for name in ("a.nemo", "a.zq"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(InputError, match=name):
            load_recogniser(tmp_path / name)


def test_models_hear_differently(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", 1.0)
    texts = {
        next(transcribe(load_recogniser(write_checkpoint(tmp_path / f"{seed}.nemo", seed)), [path]))
        for seed in range(3)
    }
    assert len(texts) == 3
