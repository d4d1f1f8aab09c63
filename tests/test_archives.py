import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zqlib import archives
from zqlib.archives import extract_tar, read_members
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
    refuse(tmp_path, one_member(type=kind, linkname="b.txt"), "a link, a device or")


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


def read(tmp_path: Path, content: bytes, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    (tmp_path / "archive").write_bytes(content)
    return read_members(tmp_path / "archive", max_bytes=max_bytes)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_read_members(tmp_path, make_tar, mode):
    large = {"./large": np.random.default_rng(1).bytes((3 << 20) + 5)}
    found = read(tmp_path, make_tar(FILES | large, mode), 4 << 20)
    assert found == {name.removeprefix("./"): body for name, body in (FILES | large).items()}
    assert list(tmp_path.iterdir()) == [tmp_path / "archive"]


def test_read_members_passes_over_folders(tmp_path):
    assert read(tmp_path, one_member(type=tarfile.DIRTYPE, name="./")) == {}


def test_read_members_takes_no_more_than_the_limit(tmp_path, make_tar):
    content = make_tar({"a": bytes(600), "b": bytes(400)})
    assert read(tmp_path, content, 1000) == {"a": bytes(600), "b": bytes(400)}
    with pytest.raises(InputError, match="more than 999 bytes"):
        read(tmp_path, content, 999)


def test_read_members_sees_damage(tmp_path, make_tar):
    whole = make_tar({"a": b"x" * 512, "b": b"y" * 512}, "w")
    damaged = whole[:1027] + b"?" + whole[1028:]
    for content in (whole[:512], whole[:1300], whole[:2048], damaged):
        with pytest.raises(InputError, match="not a whole and sound"):
            read(tmp_path, content)


@pytest.mark.parametrize("act", [unpack, read])
def test_sparse_files(tmp_path, act):
    # a few bytes that stand for many
    sparse = tarfile.TarInfo("corpus/a.bin")
    sparse.pax_headers = {"GNU.sparse.size": "1000000", "GNU.sparse.map": "0,0"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse)
    with pytest.raises(InputError, match="a sparse file"):
        act(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("mtime", ["1e300", "nan", "-1e300"])
def test_impossible_time(tmp_path, mtime):
    content = one_member(pax_headers={"mtime": mtime})
    try:
        assert (unpack(tmp_path, content) / "corpus/a.txt").is_file()
    except InputError:
        assert list(tmp_path.iterdir()) == [tmp_path / "archive"]


def test_folder_in_place_of_the_archive(tmp_path):
    with pytest.raises(InputError, match="does not exist as a file"):
        read_members(tmp_path, max_bytes=1)
