import hashlib
import io

import numpy as np
import pytest
import soundfile

from zqlib.corpora import an4
from zqlib.corpora.an4 import fetch_an4, parse_transcription
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).integers(-(2**15), 2**15, samples, dtype=np.int16)


def sphere(samples: int, rate_hz: int = 16000, endian: str = "BIG") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(samples), rate_hz, "PCM_16", endian, format="NIST")
    return buffer.getvalue()


@pytest.fixture
def files() -> dict[str, bytes]:
    """The layout of the true archive, in small."""
    return {
        "an4/README": b"census",
        "an4/LICENSE": b"free",
        "an4/etc/an4_train.fileids": b"an4_clstk/fash/an251-fash-b\n",
        "an4/etc/an4_train.transcription": b"<s> YES </s> (an251-fash-b)\n",
        "an4/etc/an4_test.fileids": (
            b"\nan4test_clstk/fcaw/an406-fcaw-b\nan4test_clstk/mdms2/cen1-mdms2-b\n"
        ),
        "an4/etc/an4_test.transcription": (
            b"S A N D L E R (cen1-mdms2-b)\n<s> RUBOUT G M(2) NINE </s> (an406-fcaw-b)\n"
        ),
        "an4/wav/an4_clstk/fash/an251-fash-b.sph": sphere(16000),
        "an4/wav/an4test_clstk/fcaw/an406-fcaw-b.sph": sphere(24000),
        "an4/wav/an4test_clstk/mdms2/cen1-mdms2-b.sph": sphere(8000, endian="LITTLE"),
    }


@pytest.fixture
def fetch(server, make_tar, tmp_path):
    def fetch(files: dict[str, bytes]):
        archive = make_tar(files)
        server.files["an4_sphere.tar.gz"] = archive
        checksum = f"sha256:{hashlib.sha256(archive).hexdigest()}"
        return fetch_an4(tmp_path, f"{server.url}/", checksum=checksum)

    return fetch


def test_fetch(fetch, files, tmp_path):
    manifests = fetch(files)
    assert manifests == {s: tmp_path / "an4" / f"{s}.jsonl" for s in ("train", "test")}
    (train,) = read_manifest(manifests["train"])
    assert (train.duration_s, train.text) == (1.0, "yes")
    test = read_manifest(manifests["test"])
    assert [
        (u.audio_path.relative_to(tmp_path).as_posix(), u.duration_s, u.text) for u in test
    ] == [
        ("an4/test/fcaw/an406-fcaw-b.flac", 1.5, "rubout g m nine"),
        ("an4/test/mdms2/cen1-mdms2-b.flac", 0.5, "s a n d l e r"),
    ]


def test_samples_are_exact(fetch, files):
    manifests = fetch(files)
    for utterance in read_manifest(manifests["train"]) + read_manifest(manifests["test"]):
        samples, rate_hz = soundfile.read(utterance.audio_path, dtype="int16")
        assert soundfile.info(utterance.audio_path).subtype == "PCM_16"
        assert rate_hz == 16000
        np.testing.assert_array_equal(samples, noise(len(samples)))


def test_keeps_the_licence_and_nothing_temporary(fetch, files, tmp_path):
    fetch(files)
    assert [path.name for path in tmp_path.iterdir()] == ["an4"]
    names = {path.name for path in (tmp_path / "an4").iterdir()}
    assert names == {"LICENSE", "README", "test", "test.jsonl", "train", "train.jsonl"}


def test_second_call_asks_for_nothing(fetch, files, server, tmp_path):
    fetch(files)
    server.files.clear()
    fetch_an4(tmp_path, server.url)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("step", ["extract_tar", "_convert", "write_manifest"])
def test_interrupted_at_any_step(fetch, files, server, tmp_path, monkeypatch, step):
    real = getattr(an4, step)

    def interrupted(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(an4, step, interrupted)
        fetch(files)
    assert not (tmp_path / "an4").exists()
    assert len(read_manifest(fetch(files)["test"])) == 2
    assert len(server.ranges) == 1


def test_official_checksum_is_demanded(server, make_tar, files, tmp_path):
    server.files["an4_sphere.tar.gz"] = make_tar(files)
    with pytest.raises(InputError, match=f"instead of {an4.CHECKSUM}"):
        fetch_an4(tmp_path, server.url)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_not_touched(fetch, files, tmp_path):
    (tmp_path / "an4").mkdir()
    (tmp_path / "an4" / "mine").write_text("keep")
    with pytest.raises(InputError, match="move it out of the way"):
        fetch(files)
    assert (tmp_path / "an4" / "mine").read_text() == "keep"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("an4/etc/an4_test.fileids", None, "no readable etc/an4_test.fileids"),
        ("an4/etc/an4_test.transcription", b"\xff", "no readable etc/an4_test.transcription"),
        ("an4/etc/an4_test.transcription", b"YES (other)\n", "no transcription of"),
        ("an4/wav/an4_clstk/fash/an251-fash-b.sph", None, "missing or not readable"),
        ("an4/wav/an4_clstk/fash/an251-fash-b.sph", b"no audio", "missing or not readable"),
        ("an4/wav/an4_clstk/fash/an251-fash-b.sph", sphere(99, rate_hz=8000), "not 16 kHz mono"),
    ],
)
def test_incomplete_archive(fetch, files, tmp_path, name, content, match):
    del files[name]
    with pytest.raises(InputError, match=match):
        fetch(files if content is None else files | {name: content})
    assert not (tmp_path / "an4").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("YES (an251-fash-b)", ("an251-fash-b", "yes")),
        ("<s> ENTER SIX TWO </s> (an87-fbbh-b)", ("an87-fbbh-b", "enter six two")),
        ("<s>  GO </s>(an264-mcfl-b)\n", ("an264-mcfl-b", "go")),
        ("THE(2) TWENTY(3) OH (cen8-fash-b)", ("cen8-fash-b", "the twenty oh")),
        ("S P E E R (cen4-mdms2-b)", ("cen4-mdms2-b", "s p e e r")),
    ],
)
def test_transcriptions(line, expected):
    assert parse_transcription(line) == expected


@pytest.mark.parametrize("line", ["YES", "(an251-fash-b)", "<s> </s> (an251-fash-b)", "YES ()"])
def test_not_a_transcription(line):
    with pytest.raises(InputError, match="not of the form"):
        parse_transcription(line)
