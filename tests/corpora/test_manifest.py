"""Manifests: what is written is read again, and what is not a manifest is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from zqlib.corpora.manifest import Utterance, read_manifest, write_manifest
from zqlib.errors import InputError

LINE = {"audio_filepath": "a.flac", "duration": 1.5, "text": "one two"}


def write_lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_round_trip(tmp_path: Path) -> None:
    utterances = [
        Utterance(tmp_path / "audio" / "a b.flac", 1.25, "one two"),
        Utterance(tmp_path / "é.wav", 0.0125, ""),
        # characters that end a line for str.splitlines, but not in JSON lines
        Utterance(tmp_path / "c.wav", 3.0, "a\u2028b\x85c\x0bd\ne\r"),
    ]
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert read_manifest(tmp_path / "m.jsonl") == utterances


def test_paths_are_relative_below_the_folder_and_absolute_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    audio = [Path("data/a.wav"), tmp_path / "data" / "a.wav", Path("other/b.wav"), Path("/c.wav")]
    write_manifest(Path("data/m.jsonl"), [Utterance(path, 1.0, "x") for path in audio])
    lines = Path("data/m.jsonl").read_text().splitlines()
    written = [json.loads(line)["audio_filepath"] for line in lines]
    assert written == ["a.wav", "a.wav", str(tmp_path / "other/b.wav"), "/c.wav"]
    # every path still names the file that it named when it was written
    found = [utterance.audio_path for utterance in read_manifest(Path("data/m.jsonl"))]
    assert [os.path.abspath(p) for p in found] == [os.path.abspath(p) for p in audio]


def test_a_moved_folder_keeps_its_audio(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_manifest(tmp_path / "old" / "m.jsonl", [Utterance(tmp_path / "old" / "a.wav", 1.0, "x")])
    (tmp_path / "old").rename(tmp_path / "new")
    (utterance,) = read_manifest(tmp_path / "new" / "m.jsonl")
    assert utterance.audio_path == tmp_path / "new" / "a.wav"


def test_further_keys_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f"\n{json.dumps(LINE | {'speaker': 7})}\r\n\n  \n{json.dumps(LINE)}")
    assert read_manifest(path) == [Utterance(tmp_path / "a.flac", 1.5, "one two")] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"duration": 0},
        {"duration": -1.0},
        {"duration": float("nan")},
        {"duration": float("inf")},
        {"duration": 10**400},
        {"duration": "long"},
        {"duration": None},
        {"duration": [1]},
        {"text": None},
        {"text": 5},
        {"audio_filepath": None},
        {"audio_filepath": ["a.flac"]},
    ],
    ids=lambda change: str(change)[:40],
)
def test_bad_value(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_lines(tmp_path / "m.jsonl", LINE, LINE | change)
    with pytest.raises(InputError, match=r"^Line 2 of .* is not a manifest entry") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", LINE)
def test_missing_key(tmp_path: Path, key: str) -> None:
    path = write_lines(tmp_path / "m.jsonl", {k: v for k, v in LINE.items() if k != key})
    with pytest.raises(InputError, match=f"Line 1 .*{key}"):
        read_manifest(path)


@pytest.mark.parametrize("line", ["{", "[]", "7", '"text"', "null", "[" * 100_000, "9" * 5000])
def test_line_that_is_no_entry(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match="Line 1"):
        read_manifest(tmp_path / "m.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="lists no utterance"):
        read_manifest(tmp_path / "m.jsonl")


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes("é".encode("latin-1"))
    for path in (tmp_path / "missing", tmp_path, tmp_path / "latin1"):
        with pytest.raises(InputError, match="cannot be read"):
            read_manifest(path)


def test_damaged_manifests_are_read_or_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", *[LINE] * 3)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for position in rng.integers(0, len(damaged), rng.integers(0, 4)):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_manifest(path)
        except InputError:
            refused += 1
    assert 500 < refused < 1000
