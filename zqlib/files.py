"""Files that are either whole or absent: write to a temporary name, then rename."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zqlib.errors import InputError

__all__ = ["atomic_output", "read_json", "sha256_file", "user_cache", "write_json"]


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` only if the block succeeds in writing it.

    The folder of `path` is created. The temporary path has the same file name, which some writers
    store or tell the format from, in a hidden folder beside `path`: a process killed inside the
    block leaves that folder, where no search for results finds it, and never a truncated `path`.
    Two processes never share a temporary path.

    Raises:
        InputError: `path` is a folder, or its folder cannot be made or written to.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of that name exists", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}); choose another place.") from error
    temporary = Path(folder, path.name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def user_cache(name: str) -> Path:
    """A folder for what can be made again: in $ZQ_CACHE or ~/.cache/zqlib."""
    return Path(os.environ.get("ZQ_CACHE") or Path.home() / ".cache" / "zqlib") / name


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON (sorted keys, final newline), atomically."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable JSON file ({error}); write it anew.") from error
