"""Tar archives that are not trusted: taken whole and inside their folder, or not at all."""

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from zqlib.errors import InputError

__all__ = ["extract_tar", "read_members"]

_MAX_MEMBERS = 1_000_000  # LibriSpeech's largest split has some 150,000
_MAX_READ_BYTES = 16 << 20  # contents are read by 1 MiB; only a header asks for more
_CHUNK_BYTES = 1 << 20
# what tarfile and gzip raise for damaged input; RecursionError: an endless chain of headers
_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
)


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
            path, `..`, a link, a device or a sparse file, or unpacks to more than `max_bytes`; or
            `destination` exists.
    """
    if destination.exists():
        raise InputError(f"{destination} exists already; remove it to unpack {archive} anew.")
    partial = destination.with_name(f"{destination.name}.partial")
    try:
        with _checked_tar(archive, max_bytes) as (tar, members):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for member in tqdm(members, desc=f"unpack {archive.name}", unit=" files", disable=None):
                tar.extract(member, partial, filter="data")
        partial.replace(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_members(archive: Path, *, max_bytes: int) -> dict[str, bytes]:
    """Read the regular files of a tar archive, plain or gzip-compressed, into memory.

    Args:
        archive: the archive.
        max_bytes: limit of the sum of the files' sizes.

    Returns:
        The content of each file by its path, without a leading `./`.

    Raises:
        InputError: as `extract_tar` does for the archive.
    """
    files: dict[str, bytes] = {}
    with _checked_tar(archive, max_bytes) as (tar, members):
        for member in members:
            source = tar.extractfile(member)
            if source is None:  # a folder
                continue
            content = io.BytesIO()
            shutil.copyfileobj(source, content, _CHUNK_BYTES)
            files[str(PurePosixPath(member.name))] = content.getvalue()
    return files


@contextmanager
def _checked_tar(
    archive: Path, max_bytes: int
) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    """The opened archive and its members, all of which the caller has to take."""
    try:
        if not archive.is_file():
            raise InputError(f"The archive {archive} does not exist as a file; check the path.")
        with _open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                yield tar, _checked_members(tar, archive, max_bytes)
                # tarfile takes a damaged header for the end; the true end is a block of 0
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it breaks off before its end mark")
            while stream.read(_CHUNK_BYTES):
                pass  # to the end, where gzip keeps its checksum
    except _DAMAGE as error:
        raise InputError(
            f"{archive} is not a whole and sound tar archive ({error}); get it again."
        ) from error
    except OSError as error:  # a full disk, or a file where the archive wants a folder
        raise InputError(f"{archive} cannot be unpacked ({error}).") from error


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


def _checked_members(
    tar: tarfile.TarFile, archive: Path, max_bytes: int
) -> Iterator[tarfile.TarInfo]:
    total_bytes = 0
    for count, member in enumerate(tar, start=1):
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()) or member.issparse():
            raise InputError(
                f"{archive} holds {member.name!r}, which is a link, a device or a sparse file; "
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
