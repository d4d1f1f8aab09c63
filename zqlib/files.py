"""Files that are either whole or absent: write to a temporary name, then rename."""

import errno
import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zqlib.errors import InputError

__all__ = ["atomic_output", "read_json", "sha256_file", "write_json"]


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it only if the block succeeds.

    The folder of `path` is created. A process killed inside the block leaves at most a hidden
    temporary file, never a truncated `path`; two processes never share a temporary name. The
    temporary path keeps the suffix, from which some writers tell the format.

    Raises:
        InputError: `path` is a folder, or its folder cannot be made or written to.
    """
    temporary = path.parent / f".{path.stem}.{secrets.token_hex(8)}.tmp{path.suffix}"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of that name exists", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # not mkstemp: the umask decides who may read a result
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}); choose another place.") from error
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
