import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zqlib.corpora import archives
from zqlib.corpora.archives import extract_tar
from zqlib.errors import InputError

FILES = {
    "corpus/a.txt": b"first",
    "corpus/deep/er/b.bin": np.random.default_rng(0).bytes(50_000),
    "./corpus/empty": b"",
    "corpus/c.txt": b"last",
}
MAX_BYTES = 1 << 20


def unpack(tmp_path: Path, content: bytes, max_bytes: int = MAX_BYTES) -> Path:
    (tmp_path / "archive").write_bytes(content)
    extract_tar(tmp_path / "archive", tmp_path / "out", max_bytes=max_bytes)
    return tmp_path / "out"


def refuse(tmp_path: Path, content: bytes, match: str, max_bytes: int = MAX_BYTES) -> None:
    """The archive is refused with one sentence, and nothing of it stays."""
    with pytest.raises(InputError, match=match):
        unpack(tmp_path, content, max_bytes)
    assert list(tmp_path.iterdir()) == [tmp_path / "archive"]


def one_member(**fields: object) -> bytes:
    member = tarfile.TarInfo("corpus/a.txt")
    for name, value in fields.items():
        setattr(member, name, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_round_trip(tmp_path, mode, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:
        folder = tarfile.TarInfo("corpus")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    out = unpack(tmp_path, buffer.getvalue())
    found = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert found == {Path(name): content for name, content in FILES.items()}
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "out"}


@pytest.mark.parametrize("name", ["/etc/owned", "../owned", "corpus/../../owned", "corpus/.."])
def test_paths_that_lead_out(tmp_path, make_tar, name):
    refuse(tmp_path, make_tar({"corpus/a.txt": b"x", name: b"y"}), "leads out of its folder")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices(tmp_path, kind):
    refuse(tmp_path, one_member(type=kind, linkname="b.txt"), "a link or a device")


def test_limit_of_size_is_exact(tmp_path, make_tar):
    content = make_tar({"a": bytes(600), "b": bytes(400)})
    refuse(tmp_path, content, "more than 999 bytes", max_bytes=999)
    assert (unpack(tmp_path, content, max_bytes=1000) / "b").stat().st_size == 400


def test_claimed_size_is_refused_before_it_is_written(tmp_path):
    header = tarfile.TarInfo("bomb")
    header.size = 1 << 50
    refuse(tmp_path, gzip.compress(header.tobuf() + bytes(1024)), "more than")


def test_limit_of_members(tmp_path, make_tar, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 3)
    refuse(tmp_path, make_tar({str(i): b"" for i in range(4)}), "or 3 files")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_huge_headers_are_not_read_into_memory(tmp_path, kind):
    header = tarfile.TarInfo("header")
    header.type = kind
    header.size = 20 << 20
    content = gzip.compress(header.tobuf() + bytes((20 << 20) + 1024))
    refuse(tmp_path, content, "absurd size", max_bytes=64 << 20)


def test_endless_chain_of_headers(tmp_path):
    header = tarfile.TarInfo("header")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = 1
    refuse(tmp_path, (header.tobuf() + b"x".ljust(512, b"\0")) * 5000, "not a whole and sound")


def test_file_where_a_folder_has_to_be(tmp_path, make_tar):
    refuse(tmp_path, make_tar({"a": b"x", "a/b": b"y"}), "cannot be unpacked")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path, make_tar, mode, share):
    whole = make_tar(FILES, mode)
    if mode == "w":  # without the padding, which carries nothing
        whole = whole.rstrip(b"\0")
    refuse(tmp_path, whole[: int(share * len(whole))], "not a whole and sound")


def test_truncated_between_two_members(tmp_path, make_tar):
    whole = make_tar({"a": b"x" * 512, "b": b"y" * 512}, "w")
    refuse(tmp_path, whole[:1024], "breaks off before its end mark")


def test_damaged_header_is_not_taken_for_the_end(tmp_path, make_tar):
    whole = bytearray(make_tar({"a": b"x" * 512, "b": b"y" * 512}, "w"))
    whole[1024 + 3] ^= 0xFF  # in the name of b, under the header's checksum
    refuse(tmp_path, bytes(whole), "not a whole and sound")


def test_damaged_content_under_gzip(tmp_path, make_tar):
    # stored, not compressed: only gzip's checksum sees the damage, and it comes after the padding
    padded = make_tar(FILES, "w") + bytes(3 << 20)
    damaged = bytearray(gzip.compress(padded, compresslevel=0))
    damaged[10_000] ^= 1  # in corpus/deep/er/b.bin
    refuse(tmp_path, bytes(damaged), "CRC")


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>" * 100, b"\x1f\x8bnot gzip"])
def test_not_an_archive(tmp_path, content):
    refuse(tmp_path, content, "not a whole and sound")


def test_missing_archive(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        extract_tar(tmp_path / "nothing", tmp_path / "out", max_bytes=1)


def test_existing_destination_is_not_touched(tmp_path, make_tar: Callable[..., bytes]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        unpack(tmp_path, make_tar(FILES))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path, make_tar: Callable[..., bytes]):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("old")
    out = unpack(tmp_path, make_tar({"a": b"x"}))
    assert [path.name for path in out.iterdir()] == ["a"]
    assert not (tmp_path / "out.partial").exists()
