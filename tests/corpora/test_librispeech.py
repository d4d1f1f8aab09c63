import hashlib
import io
import re

import numpy as np
import pytest
import soundfile

from zqlib.corpora import librispeech
from zqlib.corpora.librispeech import CHECKSUMS, fetch_librispeech
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError

SPLIT = "test-other"


def flac(samples: int, rate_hz: int = 16000) -> bytes:
    noise = np.random.default_rng(samples).integers(-9000, 9000, samples, dtype=np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, rate_hz, format="FLAC")
    return buffer.getvalue()


@pytest.fixture
def files() -> dict[str, bytes]:
    """The layout of the true archive, in small."""
    split = f"LibriSpeech/{SPLIT}"
    return {
        "LibriSpeech/LICENSE.TXT": b"CC BY 4.0",
        "LibriSpeech/SPEAKERS.TXT": b"367 | M",
        f"{split}/367/130732/367-130732-0001.flac": flac(24000),
        f"{split}/367/130732/367-130732-0000.flac": flac(8000),
        f"{split}/367/130732/367-130732.trans.txt": (
            b"367-130732-0000 LOBSTERS AND LOBSTERS\n367-130732-0001 IT'S A CRAYFISH\n"
        ),
        f"{split}/1688/142285/1688-142285-0000.flac": flac(4000),
        f"{split}/1688/142285/1688-142285.trans.txt": b"1688-142285-0000 THERE'S IRON\n",
    }


@pytest.fixture
def publish(server, make_tar, monkeypatch):
    def publish(files: dict[str, bytes]) -> None:
        archive = make_tar(files)
        server.files[f"{SPLIT}.tar.gz"] = archive
        checksum = f"sha256:{hashlib.sha256(archive).hexdigest()}"
        monkeypatch.setitem(librispeech.CHECKSUMS, SPLIT, checksum)

    return publish


def test_fetch(server, publish, files, tmp_path):
    publish(files)
    manifest = fetch_librispeech(SPLIT, tmp_path, f"{server.url}/")
    assert manifest == tmp_path / "librispeech" / "test-other.jsonl"
    utterances = read_manifest(manifest)
    assert [(u.audio_path.name, u.duration_s, u.text) for u in utterances] == [
        ("1688-142285-0000.flac", 0.25, "there's iron"),
        ("367-130732-0000.flac", 0.5, "lobsters and lobsters"),
        ("367-130732-0001.flac", 1.5, "it's a crayfish"),
    ]
    for utterance in utterances:
        relative = utterance.audio_path.relative_to(manifest.parent)
        assert utterance.audio_path.read_bytes() == files[f"LibriSpeech/{relative}"]
    assert '"audio_filepath": "test-other/367/130732/367-130732-0000.flac"' in manifest.read_text()


def test_keeps_the_licence_and_nothing_temporary(server, publish, files, tmp_path):
    publish(files)
    fetch_librispeech(SPLIT, tmp_path, server.url)
    corpus = tmp_path / "librispeech"
    assert {path.name for path in corpus.iterdir()} == {SPLIT, f"{SPLIT}.jsonl"}
    assert (corpus / SPLIT / "LICENSE.TXT").read_bytes() == b"CC BY 4.0"


def test_second_call_asks_for_nothing(server, publish, files, tmp_path):
    publish(files)
    first = fetch_librispeech(SPLIT, tmp_path, server.url).read_bytes()
    server.files.clear()
    assert fetch_librispeech(SPLIT, tmp_path, server.url).read_bytes() == first
    assert len(server.ranges) == 1


def test_same_archive_same_manifest(server, publish, files, tmp_path):
    publish(files)
    one = fetch_librispeech(SPLIT, tmp_path / "one", server.url)
    publish(dict(reversed(files.items())))
    two = fetch_librispeech(SPLIT, tmp_path / "two", server.url)
    assert one.read_bytes() == two.read_bytes()


def test_continues_a_broken_download(server, publish, files, tmp_path):
    publish(files | {"LibriSpeech/filler": np.random.default_rng(0).bytes(300_000)})
    server.cut_after = 200_000
    with pytest.raises(InputError, match="broke off"):
        fetch_librispeech(SPLIT, tmp_path, server.url)
    server.cut_after = None
    assert len(read_manifest(fetch_librispeech(SPLIT, tmp_path, server.url))) == 3
    assert server.ranges[1] is not None


@pytest.mark.parametrize("step", ["extract_tar", "_take_split", "write_manifest"])
@pytest.mark.parametrize("before", [True, False])
def test_interrupted_at_any_step(server, publish, files, tmp_path, monkeypatch, step, before):
    publish(files)
    real = getattr(librispeech, step)

    def interrupted(*args, **kwargs):
        if not before:
            real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(librispeech, step, interrupted)
        fetch_librispeech(SPLIT, tmp_path, server.url)
    assert len(read_manifest(fetch_librispeech(SPLIT, tmp_path, server.url))) == 3
    assert len(server.ranges) == 1  # the verified archive is not fetched twice
    corpus = tmp_path / "librispeech"
    assert (corpus / SPLIT / "LICENSE.TXT").is_file()


def test_unknown_split_lists_the_known(tmp_path):
    known = re.escape(", ".join(sorted(CHECKSUMS)))
    with pytest.raises(InputError, match=f"no split 'test-odd'; choose one of {known}"):
        fetch_librispeech("test-odd", tmp_path)


def test_archive_of_something_else(server, publish, tmp_path):
    publish({"Other/readme": b""})
    with pytest.raises(InputError, match="holds no LibriSpeech/test-other"):
        fetch_librispeech(SPLIT, tmp_path, server.url)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("367-130732-0001.flac", None, "is missing"),
        ("367-130732-0002.flac", flac(4000), "has no transcript"),
        ("367-130732-0001.flac", b"no audio", "not readable audio"),
        ("367-130732-0001.flac", flac(4000, rate_hz=8000), "not 16 kHz mono"),
    ],
)
def test_incomplete_archive(server, publish, files, tmp_path, name, content, match):
    path = f"LibriSpeech/{SPLIT}/367/130732/{name}"
    files.pop(path, None)
    publish(files if content is None else files | {path: content})
    with pytest.raises(InputError, match=match):
        fetch_librispeech(SPLIT, tmp_path, server.url)
    assert not (tmp_path / "librispeech" / f"{SPLIT}.jsonl").exists()


def test_checksums_are_of_the_seven_splits():
    assert len(CHECKSUMS) == len(set(CHECKSUMS.values())) == 7
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in CHECKSUMS.values())
