"""Ranges, names and records of engines."""

from pathlib import Path

import pytest

from zqlib.errors import InputError
from zqlib.export.engine import EngineRecord, Profile, parse_range, record_path
from zqlib.files import write_json

RECORD = EngineRecord(
    "int8", "Tesla T4", "7.5", "11.4.0.106", "12.9", 80, (1, 1, 8), (16, 1000, 3000),
    "0" * 64, "1" * 64, {"INT8": 9, "FP32": 2}, {"vocab_size": "28"},
)  # fmt: skip


def test_a_profile_gives_three_shapes_of_each_input() -> None:
    shapes = Profile((1, 2, 4), (10, 20, 30)).shapes(80)
    assert shapes["audio_signal"] == [(1, 80, 10), (2, 80, 20), (4, 80, 30)]
    assert shapes["length"] == [(1,), (2,), (4,)]


def test_ranges_are_read() -> None:
    assert parse_range("1,2,8") == (1, 2, 8)


@pytest.mark.parametrize("text", ["", "1", "1,2", "2,1,3", "0,1,2", "1,2,3,4", "1,x,3", "1,-2,3"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="no range"):
        parse_range(text)


def test_device_and_version_are_in_the_name() -> None:
    path = RECORD.path(Path("out/model.plan"))
    assert path == Path("out/model.int8.tesla-t4.sm75.trt11.4.0.106.plan")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    engine = tmp_path / "a.plan"
    write_json(record_path(engine), RECORD.to_json())
    assert EngineRecord.beside(engine) == RECORD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "no record"),
        ({"batch": [3, 2, 1]}, "no record"),
        ({"batch": 5}, "no record"),
        ({"precision": "int4"}, "unknown precision"),
    ],
)
def test_a_damaged_record_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    engine = tmp_path / "a.plan"
    write_json(record_path(engine), RECORD.to_json() | change)
    with pytest.raises(InputError, match=message):
        EngineRecord.beside(engine)


def test_an_engine_without_its_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        EngineRecord.beside(tmp_path / "a.plan")
