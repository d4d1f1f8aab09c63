"""Unpacking of tar archives that are not trusted: whole and inside their folder, or not at all."""

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from zqlib.errors import InputError

__all__ = ["extract_tar"]

_MAX_MEMBERS = 1_000_000  # LibriSpeech's largest split has some 150,000
_MAX_READ_BYTES = 16 << 20  # tarfile reads file contents by 16 KiB; only a header asks for more
_CHUNK_BYTES = 1 << 20
# what tarfile and gzip raise for damaged input; RecursionError: an endless chain of headers
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError)


def extract_tar(archive: Path, destination: Path, *, max_bytes: int) -> None:
    """Unpack a tar archive, plain or gzip-compressed, into the new folder `destination`.

    Only regular files and folders below `destination` are accepted. The archive is unpacked into
    `<destination>.partial`, which is renamed at the end and is begun anew after an interruption.

    Args:
        archive: the archive.
        destination: a folder that does not exist yet.
        max_bytes: limit of the sum of the unpacked files' sizes.

    Raises:
        InputError: the archive is missing, not a tar, truncated or corrupt, holds an absolute
            path, `..`, a link or a device, or unpacks to more than `max_bytes`; or `destination`
            exists.
    """
    if destination.exists():
        raise InputError(f"{destination} exists already; remove it to unpack {archive} anew.")
    if not archive.is_file():
        raise InputError(f"The archive {archive} does not exist; check the path.")
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _open(archive) as stream:
            _extract(stream, archive, partial, max_bytes)
        partial.replace(destination)
    except _DAMAGE as error:
        raise InputError(
            f"{archive} is not a whole and sound tar archive ({error}); get it again."
        ) from error
    except OSError as error:  # a full disk, or a file where the archive wants a folder
        raise InputError(f"{archive} cannot be unpacked into {destination} ({error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _GuardedReader(io.BufferedReader):
    """Refuses to read a huge header into memory, which tarfile would do."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError("a header claims an absurd size")
        return super().read(size)


def _open(archive: Path) -> _GuardedReader:
    """The uncompressed bytes of the archive."""
    with archive.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    raw = gzip.open(archive) if compressed else archive.open("rb", buffering=0)
    return _GuardedReader(raw, _CHUNK_BYTES)


def _extract(stream: _GuardedReader, archive: Path, folder: Path, max_bytes: int) -> None:
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        members = _checked_members(tar, archive, max_bytes)
        for member in tqdm(members, desc=f"unpack {archive.name}", unit=" files", disable=None):
            tar.extract(member, folder, filter="data")
        # tarfile takes a damaged header for the end of the archive; the true end is a block of 0
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it breaks off before its end mark")
    while stream.read(_CHUNK_BYTES):
        pass  # to the end, where gzip keeps its checksum


def _checked_members(
    tar: tarfile.TarFile, archive: Path, max_bytes: int
) -> Iterator[tarfile.TarInfo]:
    total_bytes = 0
    for count, member in enumerate(tar, start=1):
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()):
            raise InputError(
                f"{archive} holds {member.name!r}, which is a link or a device; "
                "do not trust this file."
            )
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"{archive} holds {member.name!r}, a path that leads out of its folder; "
                "do not trust this file."
            )
        total_bytes += member.size
        if member.size < 0 or total_bytes > max_bytes or count > _MAX_MEMBERS:
            raise InputError(
                f"{archive} claims to hold more than {max_bytes} bytes or {_MAX_MEMBERS} files; "
                "do not trust this file."
            )
        yield member
