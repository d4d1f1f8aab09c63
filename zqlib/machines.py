"""Results that depend on the machine: each kind of machine keeps its own, named with its commit."""

import re
import subprocess
from pathlib import Path

from zqlib.results import device_name

__all__ = ["machine_folder", "other_machines", "unchanged_since"]


def machine_folder(folder: Path) -> Path:
    """Where this kind of machine's results lie, below those of all."""
    return folder / re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")


def other_machines(folder: Path) -> list[Path]:
    """The folders of other kinds of machines there, sorted."""
    return sorted(path for path in folder.glob("*/") if path != machine_folder(folder))


def unchanged_since(root: Path, commit: str, package: str) -> bool:
    """Whether a package is that of a commit; it is not, if the checkout does not know the commit.

    Digests of modules cannot tell: those of another version of Python are others.

    Args:
        root: a checkout of zqlib.
        commit: that a record names.
        package: `zqlib.integer.backends.cpu`, say.
    """
    folder = package.replace(".", "/")
    command = ["git", "-C", str(root), "diff", "--quiet", commit, "--", folder]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
