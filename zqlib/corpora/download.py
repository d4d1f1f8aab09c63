"""Downloads that resume where they broke off and are kept only if their checksum is right."""

import hashlib
from pathlib import Path

import requests  # over pooch, which verifies too but starts a broken download from zero
from tqdm import tqdm

from zqlib.errors import InputError

__all__ = ["download"]

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 60.0  # of silence, not of the whole transfer


def download(url: str, path: Path, checksum: str) -> Path:
    """Fetch `url` into `path` and verify it; `path` never holds anything unverified.

    What arrives is collected in `<path>.part`, which survives an interruption; the next call asks
    the server for the rest only. A `path` that already has the right checksum is left alone.

    Args:
        url: an HTTP(S) address.
        path: the file to write; its folder is created.
        checksum: `algorithm:hexdigest`, with an algorithm of hashlib (`sha256`, `md5`).

    Returns:
        `path`.

    Raises:
        InputError: the server cannot be reached or refuses, the transfer broke off, or the bytes
            have another checksum.
    """
    if path.is_file() and _digest(path, checksum) == checksum:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    begun_earlier = partial.exists()
    _transfer(url, partial)
    if begun_earlier and _digest(partial, checksum) != checksum:
        # the earlier part may be of another version of the file: the whole decides
        partial.unlink()
        _transfer(url, partial)
    found = _digest(partial, checksum)
    if found != checksum:
        partial.unlink()
        raise InputError(
            f"{url} has the checksum {found} instead of {checksum}: the file was damaged on its "
            "way or replaced at its source; try again, or another mirror."
        )
    partial.replace(path)
    return path


def _digest(path: Path, checksum: str) -> str:
    """The checksum of a file, written as `checksum` is."""
    algorithm = checksum.partition(":")[0]
    with path.open("rb") as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"


def _transfer(url: str, partial: Path) -> None:
    """Append to `partial` what it lacks, or write it from the start where the server must."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the archive's own bytes: offsets count those
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if start and response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is missing, or the part is not of this file: the checksum tells
            if not response.ok:
                raise InputError(
                    f"{url} cannot be downloaded: the server answers {response.status_code} "
                    f"({response.reason}); check the address, or try another mirror."
                )
            _receive(response, partial, start)
    except requests.RequestException as error:
        received = partial.stat().st_size if partial.exists() else 0
        what = f"broke off after {received} bytes" if received else "did not begin"
        raise InputError(
            f"The download of {url} {what} ({type(error).__name__}); check the address and the "
            "network and run the same command again, which continues it."
        ) from error


def _receive(response: requests.Response, partial: Path, start: int) -> None:
    resumes = response.status_code == requests.codes.partial_content
    if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise InputError(
            f"{response.url} answers with another range than the one asked for; delete {partial} "
            "and run the same command again."
        )
    if not resumes:
        start = 0  # a server may ignore Range and send everything
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    with (
        partial.open("ab" if resumes else "wb") as stream,
        tqdm(
            desc=partial.stem,
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,  # silent where nobody looks: not a terminal
        ) as progress,
    ):
        for chunk in response.iter_content(_CHUNK_BYTES):
            stream.write(chunk)
            progress.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise requests.ConnectionError(f"{size} of {total} bytes")
