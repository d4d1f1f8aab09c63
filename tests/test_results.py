"""Records: whole, tidy, and with their origin."""

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from zqlib import results
from zqlib.errors import InputError
from zqlib.results import (
    Record,
    commit,
    device_name,
    provenance,
    read_records,
    record_path,
    write_record,
)

RECORD = Record(
    profile="quick",
    experiment="wer",
    model="tiny",
    family="quartznet",
    scheme="w8a8",
    calibration="synthetic",
    engine="reference",
    corpus="mini",
    split="mini-clean",
    utterances=10,
    words=42,
    audio_s=12.5,
    wer_pct=4.76,
    wer_ci95=(1.0, 9.5),
    delta_wer_pct=0.5,
    delta_ci95=(-1.0, 2.0),
    size_mb=0.01,
    caveats=("subset of 10 of 20", "synthesised speech"),
    hypotheses="hypotheses/tiny.jsonl",
    device="CPU",
    commit="0123456789ab",
    provenance={"seed": 0, "nested": {"list": [1, 2]}},
)
FLOAT = replace(
    RECORD, scheme="float", calibration="none", engine="float", delta_wer_pct=None, delta_ci95=None
)


@pytest.mark.parametrize("record", [RECORD, FLOAT, replace(RECORD, caveats=(), wer_pct=0)])
def test_a_record_survives_a_file(tmp_path: Path, record: Record) -> None:
    path = write_record(tmp_path, record)
    assert path == record_path(tmp_path, record)
    assert path.parent == tmp_path / "quick" / "records"
    assert read_records(tmp_path) == [record]
    assert list(path.parent.iterdir()) == [path]


def test_the_same_record_is_the_same_bytes(tmp_path: Path) -> None:
    before = write_record(tmp_path, RECORD).read_bytes()
    assert write_record(tmp_path, RECORD).read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["experiment", "model", "scheme", "calibration", "engine", "corpus", "split", "variant"],
)
def test_what_differs_lies_in_different_files(tmp_path: Path, name: str) -> None:
    write_record(tmp_path, RECORD)
    write_record(tmp_path, replace(RECORD, **{name: "other"}))
    assert len(read_records(tmp_path)) == 2


def test_profiles_are_read_together_or_alone(tmp_path: Path) -> None:
    for profile in ("quick", "local"):
        write_record(tmp_path, replace(RECORD, profile=profile))
        write_record(tmp_path, replace(FLOAT, profile=profile))
    assert [r.profile for r in read_records(tmp_path)] == ["local", "local", "quick", "quick"]
    assert {r.profile for r in read_records(tmp_path, "local")} == {"local"}


@pytest.mark.parametrize("profile", ["absent", "*", "/etc", "..", "", None])
def test_no_records_is_said(tmp_path: Path, profile: str | None) -> None:
    if profile is not None:
        write_record(tmp_path, RECORD)
    with pytest.raises(InputError, match="no records"):
        read_records(tmp_path, profile)


def test_what_a_killed_run_leaves_is_no_record(tmp_path: Path) -> None:
    path = write_record(tmp_path, RECORD)
    hidden = path.parent / f".{path.name}.x.tmp"
    hidden.mkdir()
    (hidden / path.name).write_text("{")
    assert read_records(tmp_path) == [RECORD]


@pytest.mark.parametrize("name", sorted(asdict(RECORD)))
def test_a_record_without_a_key_is_refused(name: str) -> None:
    value = RECORD.to_json()
    del value[name]
    with pytest.raises(InputError, match=name):
        Record.from_json(value)


@pytest.mark.parametrize(
    "change",
    [
        {"odd": 1}, {"version": 0}, {"version": "1"}, {"wer_pct": "4.76"}, {"wer_pct": None},
        {"wer_ci95": [1.0]}, {"wer_ci95": 5}, {"wer_ci95": None}, {"wer_ci95": ["a", "b"]},
        {"delta_ci95": [1]}, {"delta_wer_pct": "x"}, {"caveats": "one"}, {"caveats": [1]},
        {"utterances": 1.5}, {"utterances": True}, {"model": None}, {"provenance": []},
        {"size_mb": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_records_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Record.from_json(RECORD.to_json() | change)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "{}", '"text"', "null"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = write_record(tmp_path, RECORD)
    path.write_text(content)
    with pytest.raises(InputError, match="tiny_w8a8"):
        read_records(tmp_path)


def test_provenance_names_what_a_result_depends_on() -> None:
    found = provenance(model_sha256="ab", scheme={"weight_bits": 8})
    assert found["model_sha256"] == "ab" and found["scheme"] == {"weight_bits": 8}
    assert {"zqlib", "torch", "numpy", "jiwer"} <= found["versions"].keys()
    assert found["threads"] >= 1
    assert found["python"].startswith("3.")
    assert json.loads(json.dumps(found)) == found
    assert found == provenance(model_sha256="ab", scheme={"weight_bits": 8})


def test_the_device_says_what_it_is() -> None:
    assert device_name().startswith("CPU ") and device_name().endswith(" cores")


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("model name\t: EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni", "EPYC with AVX-512 VNNI"),
        ("model name\t: EPYC\nflags\t\t: fpu avx2", "EPYC with AVX2"),
        ("model name\t: Pentium\nflags\t\t: fpu", "Pentium"),
        ("model name\t: Neoverse\nFeatures\t: fp asimddp", "Neoverse with dot products"),
    ],
)
def test_processors_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, name: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{told}\n")
    monkeypatch.setattr(results, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert device_name.__wrapped__() == f"CPU {name}, 4 cores"


def git(root: Path, *arguments: str) -> str:
    options = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(root), *options, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_copy_without_history_can_be_told_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit.cache_clear()
    monkeypatch.setenv("ZQ_COMMIT", "0123456789ab")
    assert commit(tmp_path) == "0123456789ab"
    commit.cache_clear()


def test_the_commit_says_whether_the_sources_differ(tmp_path: Path) -> None:
    def now() -> str:
        commit.cache_clear()
        return commit(tmp_path)

    assert now() == "unknown"
    git(tmp_path, "init", "-q")
    assert now() == "unknown"  # no commit yet
    (tmp_path / "source.py").write_text("1")
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert now() == head
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    assert now() == head
    (tmp_path / "source.py").write_text("2")
    assert now() == f"{head}-dirty"
