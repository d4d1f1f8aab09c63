"""Corpora by name: only what is asked for, and mistakes before anything is fetched."""

from pathlib import Path
from typing import Any

import pytest

from zqlib.corpora import an4, get, librispeech, mini
from zqlib.corpora.get import get_corpus
from zqlib.errors import InputError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been built or fetched."""
    made: list[Any] = []

    def build(root: Path, splits: Any) -> dict[str, Path]:
        made.append(("mini", tuple(splits)))
        return {split: root / f"{split}.jsonl" for split in splits}

    def fetch(split: str, root: Path) -> Path:
        made.append(("librispeech", split))
        return root / f"{split}.jsonl"

    def fetch_both(root: Path) -> dict[str, Path]:
        made.append("an4")
        return {split: root / f"{split}.jsonl" for split in ("train", "test")}

    monkeypatch.setattr(mini, "build_mini_corpus", build)
    monkeypatch.setattr(librispeech, "fetch_librispeech", fetch)
    monkeypatch.setattr(an4, "fetch_an4", fetch_both)
    return made


@pytest.mark.parametrize(
    ("name", "splits", "expected"),
    [
        ("mini", None, [("mini", ("mini-clean", "mini-other"))]),
        ("mini", ["train"], [("mini", ("train",))]),
        ("librispeech", None, [("librispeech", "test-clean"), ("librispeech", "test-other")]),
        ("librispeech", ["dev-other"], [("librispeech", "dev-other")]),
        ("an4", None, ["an4"]),
        ("an4", ["train"], ["an4"]),
    ],
)
def test_splits(
    calls: list[Any], tmp_path: Path, name: str, splits: list[str] | None, expected: list[Any]
) -> None:
    found = get_corpus(name, tmp_path, splits)
    assert calls == expected
    assert set(found) == set(splits or get._TEST_SPLITS[name])
    assert all(path == tmp_path / f"{split}.jsonl" for split, path in found.items())


@pytest.mark.parametrize("name", ["mini", "librispeech", "an4"])
def test_an_unknown_split_is_refused_before_any_work(
    calls: list[Any], tmp_path: Path, name: str
) -> None:
    known = get._TEST_SPLITS[name][0]
    with pytest.raises(InputError, match=f"{name} has no split 'junk'; use .*{known}"):
        get_corpus(name, tmp_path, [known, "junk"])
    assert calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["timit", "", "MINI"])
def test_an_unknown_corpus_is_refused(calls: list[Any], tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unknown; use mini, librispeech, an4"):
        get_corpus(name, tmp_path)
    assert calls == []


def test_every_split_of_the_fetchers_has_a_name_here() -> None:
    known = {name: {*get._TEST_SPLITS[name], *get._OTHER_SPLITS[name]} for name in get._TEST_SPLITS}
    assert known["librispeech"] == set(librispeech.CHECKSUMS)
    assert known["mini"] == set(mini.SPLIT_SIZES)
    assert known["an4"] == set(an4._SPLITS)
