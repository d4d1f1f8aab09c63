"""What every mistake of a user must look like."""

from pathlib import Path


def left(folder: Path) -> list[str]:
    """All that lies in a folder, by relative path."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def one_sentence(status: int, out: str, err: str) -> str:
    """Check what a mistake makes `zq` say, and return it."""
    assert status in (1, 2)
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert err.startswith("zq: ") and "Traceback" not in err
    assert len(err) < 700 and err.endswith(".\n") and ".;" not in err
    assert out == ""
    return err
