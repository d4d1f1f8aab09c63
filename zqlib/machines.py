"""Results that depend on the machine: each kind of machine keeps its own, named with its commit."""

import re
import subprocess
from pathlib import Path

__all__ = ["device_folder", "unchanged_since"]


def device_folder(folder: Path, device: str) -> Path:
    """Where the results of one kind of machine lie, below those of all."""
    return folder / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


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
