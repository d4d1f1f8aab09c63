"""What the jobs of a reproduction take, and with them a page: seconds and memory."""

import resource
from collections.abc import Iterable
from pathlib import Path

from zqlib.errors import InputError
from zqlib.files import read_json, write_json
from zqlib.results import commit, device_name

__all__ = ["note_cost", "write_page_cost"]


def note_cost(root: Path, stamp: str, duration_s: float) -> None:
    """Note what this process took for one job: its own peak memory, or that of its kernel.

    The first time counts: a repetition finds intermediate results below `work/`.
    """
    if (path := _path(root, stamp)).is_file():
        return
    sides = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak_kib = max(resource.getrusage(side).ru_maxrss for side in sides)
    cost = {"duration_s": duration_s, "peak_memory_mb": peak_kib * 1024 / 1e6}
    write_json(path, cost)


def write_page_cost(root: Path, folder: Path, notebook: str, stamps: Iterable[str]) -> None:
    """Record what a page took: all its jobs one after the other, and the largest of them.

    Nothing is written where one of the jobs was done before costs were noted.

    Args:
        root: a checkout of zqlib.
        folder: of the profile's results.
        notebook: name of the page.
        stamps: of its jobs, its own included.
    """
    try:
        costs = [read_json(_path(root, stamp)) for stamp in stamps]
    except InputError:
        return
    record = {
        "experiment": "cost",
        "profile": folder.name,
        "notebook": notebook,
        "duration_s": round(sum(cost["duration_s"] for cost in costs), 1),
        "peak_memory_mb": round(max(cost["peak_memory_mb"] for cost in costs)),
        "device": device_name(),
        "commit": commit(root),
    }
    write_json(folder / "costs" / f"{notebook}.json", record)


def _path(root: Path, stamp: str) -> Path:
    return root / "work" / "costs" / f"{stamp.removeprefix('work/jobs/')}.json"
