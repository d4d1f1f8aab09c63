"""Files are whole or absent, whatever happens while they are written."""

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from zqlib.errors import InputError
from zqlib.files import atomic_output, read_json, sha256_file, write_json


def write_many(path: Path, letter: str, count: int) -> None:
    for _ in range(count):
        with atomic_output(path) as temporary, temporary.open("w") as stream:
            for _ in range(50):
                stream.write(letter * 1000)
                stream.flush()


def test_success_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    for content in ("first", "second"):
        with atomic_output(path) as temporary:
            assert temporary.name == path.name
            temporary.write_text(content)
            # what a killed process would leave is not taken for a result
            assert set(path.parent.glob("*.json")) <= {path}
        assert path.read_text() == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "before"])
def test_failure_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], before: str | None
) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with pytest.raises(error), atomic_output(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            with atomic_output(tmp_path / "a") as temporary:
                temporary.write_text("x")
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_concurrent_writers_end_with_one_whole_content(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "a.txt"
    path.write_text("c" * 50_000)
    writers = [context.Process(target=write_many, args=(path, letter, 40)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {letter * 50_000 for letter in "abc"}
    assert path.read_text() in ("a" * 50_000, "b" * 50_000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be written"), atomic_output(path):
            pytest.fail("work that would be lost")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_json_round_trip_in_one_form(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "1.json", value)
    write_json(tmp_path / "2.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "1.json") == value
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert (tmp_path / "1.json").read_text().endswith("}\n")


def test_value_that_is_not_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, json.dumps({}).encode()[:1]]
)
def test_what_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="not a readable JSON file"):
        read_json(tmp_path / "a.json")


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="not a readable"):
        read_json(tmp_path)
