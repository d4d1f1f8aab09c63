"""`zq`: what it prints, and one sentence for every mistake."""

import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    SYNTHESIS,
    listen_to_interrupts,
    write_audio,
    write_checkpoint,
    write_corpus,
    write_project,
)
from mistakes import left, one_sentence
from test_results import FLOAT, RECORD

from zqlib.evaluation import read_hypotheses
from zqlib.integer.program import Conv1d
from zqlib.models.nemo import write_nemo
from zqlib.quantized_model import load_quantized
from zqlib.results import write_record

ZQ = str(Path(sys.executable).parent / "zq")
COMMANDS = (
    "quantize", "export", "transcribe", "evaluate", "reproduce", "status", "results", "corpus",
    "train",
)  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(zq: Run, command: str) -> None:
    status, out, err = zq(command, "--help")
    assert (status, err) == (0, "")
    assert f"Example: zq {command} " in " ".join(out.split())


def test_the_list_of_commands_is_the_help(zq: Run) -> None:
    for arguments in ((), ("--help",)):
        status, out, err = zq(*arguments)
        assert (status, err) == (0, "")
        assert all(re.search(rf"^ +{command} ", out, re.M) for command in COMMANDS)


def test_quantize(zq: Run, here: Path, prepared: Path) -> None:
    status, out, _ = zq(
        "quantize", prepared / "tiny0.nemo", "-o", "new/a.zq", "--synthesis",
        prepared / "fast.json",
    )  # fmt: skip
    assert status == 0
    assert re.fullmatch(
        r"new/a\.zq: quartznet tiny0, w8a8, synthetic calibration "
        r"\(minmax ranges; gptq weights, minmax steps, biases corrected\), "
        r"\d+\.\d\d MB \(\d+\.\d\dx smaller than float32\)\n", out,
    )  # fmt: skip
    assert left(here) == ["new", "new/a.zq"]
    assert (here / "new" / "a.zq").read_bytes() == (prepared / "tiny0.zq").read_bytes()


@pytest.mark.parametrize(
    ("options", "name", "kind"),
    [
        (["--bits", "4"], "w4g16a8", "synthetic"),
        (["--scheme", "w4a8", "--ranges", "mse"], "w4a8", "synthetic"),
        (["--calibration", "noise", "--ranges", "percentile"], "w8a8", "noise"),
        (["--calibration", "real", "--manifest", "MANIFEST"], "w8a8", "real"),
    ],
)
def test_quantize_as_told(
    zq: Run, here: Path, prepared: Path, options: list[str], name: str, kind: str
) -> None:
    options = [str(prepared / "test.jsonl") if o == "MANIFEST" else o for o in options]
    fast = ["--synthesis", str(prepared / "fast.json"), "--quiet"]
    status, out, err = zq("quantize", prepared / "tiny0.nemo", "-o", "a.zq", *fast, *options)
    assert (status, err) == (0, "") and name in out and kind in out
    model = load_quantized(here / "a.zq")
    assert model.scheme.name == name and model.calibration["kind"] == kind


def test_quantize_to_bits_on_average_says_what_it_chose(
    zq: Run, here: Path, prepared: Path
) -> None:
    fast = ["--synthesis", str(prepared / "fast.json"), "--quiet"]
    status, out, err = zq(
        "quantize", prepared / "tiny0.nemo", "-o", "a.zq", *fast, "--scheme", "w4.5g16a8"
    )
    assert (status, err) == (0, "")
    first, average, header, *rows = out.splitlines()
    assert "w4.5g16a8" in first and re.match(r"4\.[2-5]\d bits a weight on average", average)
    assert header.split() == ["bits", "layers", "depthwise", "weights"]
    program = load_quantized(here / "a.zq").program
    assert sum(int(row.split()[1]) for row in rows) == sum(
        isinstance(operator, Conv1d) for operator in program.operators
    )


def test_a_file_of_settings_keeps_its_seed(zq: Run, here: Path, prepared: Path) -> None:
    (here / "s.json").write_text(json.dumps(SYNTHESIS.to_json() | {"seed": 5}))
    common = ("quantize", prepared / "tiny0.nemo", "-o", "a.zq", "--synthesis", "s.json", "--quiet")
    for options, seed in (((), 5), (("--seed", 0), 0), (("--seed", 7, "--steps", 1), 7)):
        assert zq(*common, *options)[0] == 0
        assert load_quantized(here / "a.zq").calibration["synthesis"]["seed"] == seed


def test_transcribe(zq: Run, here: Path, prepared: Path) -> None:
    audio = [prepared / "audio" / f"{index}.wav" for index in range(3)]
    for model in ("tiny0.nemo", "tiny0.zq"):
        status, one, err = zq("transcribe", prepared / model, audio[0])
        assert (status, err) == (0, "") and one.strip()
        status, many, err = zq("transcribe", prepared / model, *audio)
        assert (status, err) == (0, "")
        assert many.splitlines()[0] == f"{audio[0]}: {one.strip()}" and many.count("\n") == 3
        status, out, _ = zq("transcribe", prepared / model, *audio, "--format", "json")
        rows = json.loads(out)
        assert [row["audio"] for row in rows] == [str(path) for path in audio]
        assert [f"{row['audio']}: {row['text']}" for row in rows] == many.splitlines()
    assert left(here) == []


def test_evaluate(zq: Run, here: Path, prepared: Path) -> None:
    manifest = prepared / "test.jsonl"
    status, out, err = zq(
        "evaluate", prepared / "tiny0.zq", manifest, "--baseline", prepared / "tiny0.nemo",
        "--hypotheses", "h.jsonl", "--quiet",
    )  # fmt: skip
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert re.search(
        r"\(reference\): WER [\d.]+ % \[[\d.]+, [\d.]+\] on 3 utterances, 6 words", first
    )
    assert re.search(r"difference [+-][\d.]+ points \[[+-][\d.]+, [+-][\d.]+\]", second)
    assert len(read_hypotheses(here / "h.jsonl")) == 3 and left(here) == ["h.jsonl"]
    status, out, _ = zq("evaluate", prepared / "tiny0.nemo", manifest, "--format", "json")
    result = json.loads(out)
    assert result["engine"] == "float" and result["utterances"] == 3 and result["words"] == 6
    assert result["wer_ci95"][0] <= result["wer_pct"] <= result["wer_ci95"][1]


def test_results(zq: Run, here: Path) -> None:
    write_record(here / "results", RECORD)
    write_record(here / "results", FLOAT)
    status, out, err = zq("results")
    assert (status, err) == (0, "")
    assert "4.76" in out and "1.00-9.50" in out and "+0.50" in out
    assert "note: subset of 10 of 20" in out
    status, out, _ = zq("results", "--format", "json")
    rows = json.loads(out)
    assert len(rows) == 2
    for row in rows:
        assert {
            "profile", "experiment", "model", "family", "scheme", "calibration", "engine", "corpus",
            "split", "utterances", "wer_pct", "wer_ci95", "device", "commit",
        } <= row.keys()  # fmt: skip
    assert zq("results", "--profile", "quick")[0] == 0


def test_corpus_prints_its_manifests(zq: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zqlib.corpora import get

    asked: list[Any] = []

    def fake(*arguments: Any) -> dict[str, Path]:
        asked.append(arguments)
        return {"mini-clean": Path("data/mini-clean.jsonl")}

    monkeypatch.setattr(get, "get_corpus", fake)
    status, out, _ = zq("corpus", "mini", "data", "--split", "mini-clean")
    assert (status, out) == (0, "data/mini-clean.jsonl\n")
    assert asked == [("mini", Path("data"), ["mini-clean"])]


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch hacked",)


def damaged(kind: str, prepared: Path, folder: Path) -> Path:
    """A model file that is not one, in its own folder."""
    good = (prepared / "tiny0.nemo").read_bytes()
    program = bytearray((prepared / "tiny0.zq").read_bytes())
    folder.mkdir(exist_ok=True)
    if kind == "hostile.nemo":
        with (
            tarfile.open(folder / kind, "w") as archive,
            tarfile.open(prepared / "tiny0.nemo") as source,
        ):
            for member in source.getmembers():
                stream = source.extractfile(member)
                data = stream.read() if stream else b""
                if member.name.endswith(".ckpt"):
                    data = pickle.dumps({"weight": Hostile()})
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return folder / kind
    program[-20] ^= 1
    content = {
        "cut.nemo": good[: len(good) // 2],
        "text.nemo": b"no model\n",
        "empty.nemo": b"",
        "flipped.zq": bytes(program),
        "cut.zq": (prepared / "tiny0.zq").read_bytes()[:-9],
        "text.zq": b"no model\n",
        "empty.zq": b"",
        "model.onnx": good,
    }
    if kind in content:
        (folder / kind).write_bytes(content[kind])
    return folder / kind


@pytest.mark.parametrize(
    "kind",
    ["absent.nemo", "absent.zq", "cut.nemo", "text.nemo", "empty.nemo", "hostile.nemo",
     "flipped.zq", "cut.zq", "text.zq", "empty.zq", "model.onnx"],
)  # fmt: skip
def test_bad_models(zq: Run, here: Path, prepared: Path, tmp_path: Path, kind: str) -> None:
    model = damaged(kind, prepared, tmp_path.parent / f"{tmp_path.name}-models")
    manifest = prepared / "test.jsonl"
    commands = [
        ("transcribe", model, prepared / "audio" / "0.wav"),
        ("evaluate", model, manifest, "--hypotheses", "h.jsonl"),
        ("evaluate", prepared / "tiny0.nemo", manifest, "--baseline", model),
    ]
    if model.suffix == ".nemo":
        commands.append(("quantize", model, "-o", "a.zq"))
    for command in commands:
        assert kind in one_sentence(*zq(*command)), command
        assert left(here) == []


def test_a_hostile_model_runs_nothing(here: Path, prepared: Path) -> None:
    """In a process of its own, where warnings of libraries would reach stderr, too."""
    model = damaged("hostile.nemo", prepared, here)
    run = subprocess.run([ZQ, "quantize", model, "-o", "a.zq"], capture_output=True, text=True)
    assert "hostile.nemo" in one_sentence(run.returncode, run.stdout, run.stderr)
    assert left(here) == ["hostile.nemo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "1"], "weight_bits is 1; give an integer from 2 to 8"),
        (["--bits", "9"], "weight_bits is 9"),
        (["--bits", "0"], "weight_bits is 0"),
        (["--bits", "-1"], "w-1g16a8"),
        (["--bits", "abc"], "Invalid value for '--bits'"),
        (["--bits", "8", "--scheme", "w8a8"], "not both"),
        (["--scheme", "junk"], "'junk' is not a quantization scheme"),
        (["--scheme", ""], "'' is not a quantization scheme"),
        (["--scheme", "w9a8"], "weight_bits is 9"),
        (["--scheme", "w1.5a8"], "weight_budget is 1.5; give a number from 2 to 8"),
        (["--scheme", "w4g1a8"], "weight_group is 1; give an integer from 2"),
        (["--scheme", "w8a1"], "activation_bits is 1"),
        (["--ranges", "best"], "'best' is unknown"),
        (["--calibration", "best"], "'best' is unknown"),
        (["--calibration", "real"], "--manifest"),
        (["--calibration", "real", "--manifest", "absent.jsonl"], "absent.jsonl"),
        (["--manifest", "absent.jsonl"], "--manifest"),
        (["--synthesis", "best"], "'best' is unknown"),
        (["--synthesis", "absent.json"], "absent.json does not exist"),
        (["--steps", "-1"], "steps"),
        (["--batches", "0"], "batches"),
        (["--seed", "-1"], "seed"),
        (["-o", "a.onnx"], "must end in .zq"),
        (["--odd"], "--odd"),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_bad_quantizations(
    zq: Run, here: Path, prepared: Path, options: list[str], message: str
) -> None:
    arguments = ["quantize", prepared / "tiny0.nemo", "-o", "a.zq", *options]
    assert message in one_sentence(*zq(*arguments))
    assert left(here) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize",), ("quantize", "a.nemo"), ("transcribe",), ("transcribe", "a.nemo"),
        ("evaluate", "a.nemo"), ("corpus",), ("nonsense",), ("--odd",), ("results", "--format"),
        ("transcribe", "a", "b", "--batch-size", "x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(zq: Run, here: Path, arguments: tuple[str, ...]) -> None:
    status, out, err = zq(*arguments)
    assert "--help" in one_sentence(status, out, err)
    assert status == 2


def test_bad_audio(zq: Run, here: Path, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-audio"
    bad = {
        write_audio(folder / "empty.wav", 0): "holds no audio samples",
        write_audio(folder / "slow.wav", sample_rate=8000): "8000 Hz",
        write_audio(folder / "stereo.wav", channels=2): "2 channels",
        write_audio(folder / "short.wav", 0.015): "shorter than two frames",
        folder / "absent.wav": "does not exist",
        folder / "text.wav": "not a readable",
        folder: "does not exist",
    }
    (folder / "text.wav").write_text("no audio")
    for path, reason in bad.items():
        for model in ("tiny0.nemo", "tiny0.zq"):
            err = one_sentence(*zq("transcribe", prepared / model, path))
            assert str(path) in err and reason in err
    assert zq("transcribe", prepared / "tiny0.zq", folder / "slow.wav", "--resample")[0] == 0


def test_one_bad_file_among_good_ones(zq: Run, here: Path, prepared: Path) -> None:
    """What was heard before it is printed, nothing after; in JSON, nothing at all."""
    good = [prepared / "audio" / "0.wav", prepared / "audio" / "1.wav"]
    arguments = ("transcribe", prepared / "tiny0.zq", good[0], "gone.wav", good[1])
    status, out, err = zq(*arguments)
    assert status == 1 and err.startswith("zq: gone.wav does not exist") and err.count("\n") == 1
    assert out.count("\n") == 1 and out.startswith(f"{good[0]}: ")
    assert "gone.wav" in one_sentence(*zq(*arguments, "--format", "json"))
    assert "gone.wav" in one_sentence(*zq(*arguments, "--batch-size", "3"))


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\n", b"no json\n", b"[]\n", b'{"audio_filepath": "a.wav"}\n', b"\xff\xfe\n",
     b'{"audio_filepath": "gone.wav", "duration": 1, "text": "a"}\n'],
)  # fmt: skip
def test_bad_manifests(
    zq: Run, here: Path, prepared: Path, tmp_path: Path, content: bytes | None
) -> None:
    manifest = tmp_path.parent / f"{tmp_path.name}-m.jsonl"
    if content is not None:
        manifest.write_bytes(content)
    model = prepared / "tiny0.nemo"
    for arguments in (
        ("evaluate", model, manifest, "--hypotheses", "h.jsonl", "--quiet"),
        ("quantize", model, "-o", "a.zq", "--calibration", "real", "--manifest", manifest),
    ):
        err = one_sentence(*zq(*arguments))
        assert manifest.name in err or "gone.wav" in err
        assert left(here) == []


def test_a_manifest_without_words_cannot_be_scored(zq: Run, here: Path, prepared: Path) -> None:
    manifest = write_corpus(here / "c", 1)
    manifest.write_text(manifest.read_text().replace("one two", " "))
    err = one_sentence(*zq("evaluate", prepared / "tiny0.nemo", manifest, "--quiet"))
    assert "no words" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("results",), "no records"),
        (("results", "--profile", "/etc"), "no records"),
        (("results", "--folder", "absent"), "no records"),
        (("results", "--format", "xml"), "'xml' is unknown"),
        (("reproduce",), "not a checkout"),
        (("corpus", "timit", "data"), "'timit' is unknown"),
        (("corpus", "mini", "data", "--split", "dev"), "no split 'dev'"),
        (("corpus", "librispeech", "data", "--split", "test-clean", "--split", "x"), "split 'x'"),
        (("train", "a.nemo", "--work-dir", "w", "--config", "absent.json"), "absent.json"),
    ],
)
def test_what_is_not_there(zq: Run, here: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in one_sentence(*zq(*arguments))
    assert left(here) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "slow"), "profile 'slow' is unknown; use one of smoke"),
        (("--only", "plots"), "notebook 'plots' is unknown"),
        (("-p", "sed=4"), "parameter 'sed' is unknown"),
        (("-p", "seed"), "write name=value"),
        (("-p", "seed=--5"), "seed an integer"),
        (("-p", "seed=-5"), "seed"),
        (("-p", "models=other"), "no model 'other'"),
        (("-p", "profile=local"), "--profile"),
    ],
)
def test_bad_reproductions(zq: Run, here: Path, arguments: tuple[str, ...], message: str) -> None:
    write_project(here, 1)
    before = left(here)
    assert message in one_sentence(*zq("reproduce", "--profile", "smoke", *arguments))
    assert left(here) == before


@pytest.mark.parametrize("output", ["file/a.zq", "folder.zq"])
def test_outputs_that_cannot_be(zq: Run, here: Path, prepared: Path, output: str) -> None:
    (here / "file").write_text("")
    (here / "folder.zq").mkdir()
    before = left(here)
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    err = one_sentence(*zq("quantize", prepared / "tiny0.nemo", "-o", output, *fast))
    assert "cannot be written" in err
    assert left(here) == before


def test_a_folder_without_permission(zq: Run, here: Path, prepared: Path) -> None:
    """In /proc not even root may make a file."""
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    err = one_sentence(*zq("quantize", prepared / "tiny0.nemo", "-o", "/proc/a.zq", *fast))
    assert "/proc/a.zq cannot be written" in err
    assert left(here) == []


def small_files() -> None:
    """From here on no file may grow beyond 4 KiB: a full disk, as far as a program can tell."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize("calibration", ["synthetic", "noise"])
def test_a_full_disk(here: Path, prepared: Path, calibration: str) -> None:
    """`synthetic` stops at its cache, `noise` at the program."""
    command = ["quantize", str(prepared / "tiny0.nemo"), "-o", "a.zq", "--quiet", "--synthesis",
               str(prepared / "fast.json"), "--calibration", calibration]  # fmt: skip
    run = subprocess.run([ZQ, *command], capture_output=True, text=True, preexec_fn=small_files)
    assert "disk space" in one_sentence(run.returncode, run.stdout, run.stderr)
    assert left(here) == []


def test_hypotheses_on_a_full_disk(
    zq: Run, here: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    err = one_sentence(
        *zq("evaluate", prepared / "tiny0.zq", prepared / "test.jsonl", "--hypotheses", "h.jsonl",
            "--quiet")
    )  # fmt: skip
    assert "No space left on device" in err
    assert left(here) == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["results", "--help"], 0), (["results"], 1), (["nonsense"], 2)],
    ids=str,
)
def test_the_installed_command(here: Path, arguments: list[str], status: int) -> None:
    run = subprocess.run([ZQ, *arguments], capture_output=True, text=True)
    assert run.returncode == status
    if status:
        one_sentence(run.returncode, run.stdout, run.stderr)
    else:
        assert run.stdout and not run.stderr


def test_a_reader_that_stops_reading(here: Path) -> None:
    write_record(here / "results", RECORD)
    run = subprocess.run(
        f"{ZQ} results --format json | true", shell=True, capture_output=True, text=True
    )
    assert run.stderr == ""


def test_an_interruption_is_one_sentence(here: Path, prepared: Path) -> None:
    process = subprocess.Popen(
        [ZQ, "quantize", str(prepared / "tiny0.nemo"), "-o", "a.zq", "--synthesis", "authors"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=listen_to_interrupts,
    )  # fmt: skip
    assert process.stderr is not None
    while "step/s" not in process.stderr.read(20):  # until the synthesis shows its bar
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1].startswith("zq: interrupted") and "Traceback" not in err
    assert left(here) == []


def test_models_of_other_families_are_named(zq: Run, here: Path) -> None:
    write_nemo(
        here / "a.nemo",
        {name: {"_target_": f"x.{name}"} for name in ("preprocessor", "encoder", "decoder")},
        {},
    )
    assert "only QuartzNet" in one_sentence(*zq("quantize", "a.nemo", "-o", "a.zq"))
    assert left(here) == ["a.nemo"]


def test_a_checkpoint_in_the_working_folder(zq: Run, here: Path, prepared: Path) -> None:
    write_checkpoint(here / "mine.nemo")
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    assert zq("quantize", "mine.nemo", "-o", "mine.zq", *fast)[0] == 0
    assert left(here) == ["mine.nemo", "mine.zq"]
