"""Bad input of every kind, as a user would give it: one clear sentence, and nothing left behind.

`tests/test_cli.py` has the mistakes of each command's options, `tests/test_archives.py` those of
tar archives; here are the contents of files.
"""

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from checkpoints import write_project
from mistakes import left, one_sentence
from test_results import RECORD

from zqlib.results import write_record

Run = Callable[..., tuple[int, str, str]]
WORD = {"audio_filepath": "audio/0.wav", "duration": 0.4, "text": "one"}


def line(**changes: Any) -> bytes:
    return json.dumps(WORD | changes).encode() + b"\n"


MANIFESTS = {
    "a negative duration": (line(duration=-1), "not positive"),
    "no duration at all": (line(duration=None), "duration"),
    "a duration of zero": (line(duration=0), "not positive"),
    "a duration that is NaN": (line(duration=float("nan")), "not positive"),
    "an endless duration": (line(duration=float("inf")), "not positive"),
    "a duration in words": (line(duration="long"), "long"),
    "a text that is a number": (line(text=1), "must be strings"),
    "a path that is a list": (line(audio_filepath=["a"]), "must be strings"),
    "a path with a NUL": (line(audio_filepath="a\0b.wav"), "NUL"),
    "a path of a folder": (line(audio_filepath="audio"), "does not exist"),
    "a path far too long": (line(audio_filepath="a" * 5000), "too long"),
    "a line of another kind": (line() + b'"text"\n', "Line 2"),
    "brackets without end": (b"[" * 100_000, "Line 1"),
    "another encoding": ("\ufeff{}".encode("utf-16"), "cannot be read"),
    "a byte order mark": (b"\xef\xbb\xbf" + line(), "Line 1"),
    "two values in a line": (line().strip() + line(), "Line 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests(zq: Run, here: Path, prepared: Path, kind: str) -> None:
    content, message = MANIFESTS[kind]
    shutil.copytree(prepared / "audio", here / "audio")
    (here / "m.jsonl").write_bytes(content)
    before = left(here)
    err = one_sentence(*zq("evaluate", prepared / "tiny0.nemo", "m.jsonl", "--quiet"))
    assert message in err and left(here) == before


def samples(path: Path, values: np.ndarray, subtype: str = "FLOAT") -> None:
    soundfile.write(path, values.astype(np.float32), 16000, format="WAV", subtype=subtype)


NOISE = np.sin(np.arange(8000) / 5) / 2
AUDIO: dict[str, tuple[Callable[[Path], Any], str]] = {
    "samples that are NaN": (lambda p: samples(p, NOISE * np.nan), "not finite"),
    "one endless sample": (lambda p: samples(p, np.append(NOISE, np.inf)), "not finite"),
    "a header without samples": (lambda p: samples(p, NOISE[:0]), "no audio samples"),
    "a header cut off": (lambda p: p.write_bytes(b"RIFF\x24\0\0\0WAVEfmt "), "not a readable"),
    "nothing": (lambda p: p.write_bytes(b""), "not a readable"),
    "a picture": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "not a readable"),
    "zeros": (lambda p: p.write_bytes(bytes(4096)), "not a readable"),
    "a folder": (lambda p: p.mkdir(), "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("kind", AUDIO)
def test_audio(zq: Run, here: Path, prepared: Path, kind: str) -> None:
    write, message = AUDIO[kind]
    write(here / "a.wav")
    err = one_sentence(*zq("transcribe", prepared / "tiny0.zq", "a.wav"))
    assert message in err and "a.wav" in err and left(here) == ["a.wav"]


def tensors_file(header: bytes, claimed: int | None = None) -> bytes:
    return gzip.compress(struct.pack("<Q", len(header) if claimed is None else claimed) + header)


YAML_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(8)
)
CONFIGS: dict[str, tuple[bytes | None, str]] = {
    "without a config": (None, "holds no model_config.yaml"),
    "with an empty config": (b"", "not valid"),
    "with a list for a config": (b"- a\n- b\n", "not valid"),
    "with a config that is no YAML": (b"a: [", "not valid"),
    "with a tag that makes objects": (b"!!python/object/apply:os.getcwd []", "not valid"),
    "with a bomb of aliases": (YAML_BOMB, "not valid"),
    "with a config in another encoding": (b"\xff\xfe\xff", "not valid"),
    "without an encoder": (b"preprocessor: {}\ndecoder: {}\n", "'encoder'"),
    "with a section that is a number": (b"preprocessor: 1\n", "'preprocessor'"),
}
PROGRAMS = {
    "a header without end": tensors_file(b"", claimed=2**63),
    "a header cut off": tensors_file(b'{"a":', claimed=900),
    "a header that is no JSON": tensors_file(b"nonsense"),
    "no program inside": tensors_file(b"{}"),
    "a version of tomorrow": tensors_file(
        json.dumps({"__metadata__": {"zq": '{"version": 99, "sha256": "", "program": {}}'}})
        .encode()
    ),
    "a list for a header": tensors_file(json.dumps({"__metadata__": {"zq": "[]"}}).encode()),
    "brackets without end": tensors_file(
        json.dumps({"__metadata__": {"zq": "[" * 100_000}}).encode()
    ),
    "a tensor beyond the end": tensors_file(
        b'{"a":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]}}'
    ),
    "a shape that overflows": tensors_file(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_checkpoints(
    zq: Run, here: Path, prepared: Path, make_tar: Callable[..., bytes], kind: str
) -> None:
    config, message = CONFIGS[kind]
    files = {} if config is None else {"model_config.yaml": config}
    (here / "a.nemo").write_bytes(make_tar(files | {"model_weights.ckpt": weights(prepared)}))
    err = one_sentence(*zq("quantize", "a.nemo", "-o", "a.zq"))
    assert message in err and "a.nemo" in err and left(here) == ["a.nemo"]


def weights(prepared: Path) -> bytes:
    from zqlib.archives import read_members

    return read_members(prepared / "tiny0.nemo", max_bytes=1 << 20)["model_weights.ckpt"]


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs(zq: Run, here: Path, prepared: Path, kind: str) -> None:
    (here / "a.zq").write_bytes(PROGRAMS[kind])
    err = one_sentence(*zq("transcribe", "a.zq", prepared / "audio" / "0.wav"))
    assert "a.zq" in err and ("zq quantize" in err or "give another file" in err)


RECORDS = {
    "nothing": "",
    "a list": "[]",
    "an empty object": "{}",
    "a rate in words": json.dumps(RECORD.to_json() | {"wer_pct": "low"}),
    "half an interval": json.dumps(RECORD.to_json() | {"wer_ci95": [1.0]}),
    "a record of tomorrow": json.dumps(RECORD.to_json() | {"version": 99}),
    "a key too many": json.dumps(RECORD.to_json() | {"mood": "good"}),
    "a record cut off": json.dumps(RECORD.to_json())[:200],
    "brackets without end": "[" * 100_000,
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records(zq: Run, here: Path, kind: str) -> None:
    path = write_record(here / "results", RECORD)
    path.write_text(RECORDS[kind])
    assert path.name in one_sentence(*zq("results"))


SPLIT = {"corpus": "noises", "split": "test", "manifest": "corpus/test.jsonl"}
PROFILES: dict[str, tuple[dict[str, Any] | str, str]] = {
    "nothing": ("", "not a readable JSON"),
    "a list": ("[]", "must be a JSON object"),
    "a key of nobody": ({"modles": []}, "'modles'"),
    "no model": ({"models": []}, "needs a model"),
    "a model twice": ({"models": [{"path": "tiny.nemo"}] * 2}, "twice"),
    "a model without a path": ({"models": [{}]}, "path"),
    "a model that is text": ({"models": ["tiny.nemo"]}, "JSON object"),
    "a model that is not there": ({"models": [{"path": "gone.nemo"}]}, "gone.nemo"),
    "a variable that is not set": ({"models": [{"path": "${ZQ_NOT_SET}/a.nemo"}]}, "ZQ_NOT_SET"),
    "a corpus that nobody has": ({"corpora": [{"corpus": "timit", "split": "a"}]}, "'timit'"),
    "a manifest that is not there": ({"corpora": [SPLIT | {"manifest": "gone"}]}, "gone"),
    "no first utterance": ({"corpora": [SPLIT | {"first": 0}]}, "first utterance"),
    "a count in words": ({"corpora": [SPLIT | {"first": "two"}]}, "first"),
    "a scheme that is none": ({"schemes": ["w99a8"]}, "weight_bits is 99"),
    "a calibration that is none": ({"calibrations": ["luck"]}, "'luck'"),
    "real data without recordings": ({"calibrations": ["real"]}, "calibration_manifest"),
    "a synthesis that is a list": ({"synthesis": [1]}, "JSON object"),
    "an ablation of nothing": ({"ablations": [{"name": "a", "changes": {"mood": 1}}]}, "mood"),
    "an ablation without a name": ({"ablations": [{"changes": {}}]}, "incomplete"),
    "a name with a slash": ({"ablations": [{"name": "a/b", "changes": {}}]}, "a-z"),
    "another's name": ({"name": "quick"}, "calls itself 'quick'"),
    "perhaps shown": ({"shown": "perhaps"}, "shown"),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_profiles(zq: Run, here: Path, kind: str) -> None:
    write_project(here, 1)
    path = here / "workflow" / "profiles" / "smoke.json"
    content, message = PROFILES[kind]
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    before = left(here)
    assert message in one_sentence(*zq("reproduce", "--profile", "smoke"))
    assert left(here) == before


def cell(source: str) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": source}]})


NOTEBOOKS = {
    "nothing": ("", "not a readable JSON"),
    "a list": ("[]", "not a notebook"),
    "no cells": ("{}", "not a notebook"),
    "a cell that is text": ('{"cells": ["1 + 1"]}', "not a notebook"),
    "a cell that is no Python": (cell("if then"), "not Python"),
    "a cell with a NUL": (cell("a\0"), "not Python"),
}


@pytest.mark.parametrize("command", [("reproduce", "--profile", "smoke"), ("status",)], ids=str)
@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_notebooks(zq: Run, here: Path, kind: str, command: tuple[str, ...]) -> None:
    write_project(here, 1)
    content, message = NOTEBOOKS[kind]
    (here / "notebooks" / "wer.ipynb").write_text(content)
    err = one_sentence(*zq(*command))
    assert message in err and "wer.ipynb" in err
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reproduce", "--shards", "0"), "number of shards is 0"),
        (("reproduce", "--shards", "-3"), "number of shards is -3"),
        (("reproduce", "--shards", "some"), "'--shards'"),
        (("reproduce", "--on", "mars"), "workflow/mars/config.yaml does not exist"),
        (("reproduce", "--on", "profiles"), "slurm or kubernetes"),
        (("reproduce", "--only", "budget"), "names nothing to compare for budget"),
        (("status", "--profile", "slow"), "'slow' is unknown"),
        (("status", "--format", "xml"), "'xml' is unknown"),
    ],
    ids=str,
)
def test_the_workflow(zq: Run, here: Path, arguments: tuple[str, ...], message: str) -> None:
    write_project(here, 1)
    before = left(here)
    profile = ("--profile", "smoke") if arguments[0] == "reproduce" else ()
    assert message in one_sentence(*zq(*arguments, *profile))
    assert left(here) == before
