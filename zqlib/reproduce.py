"""Runs the notebooks of a profile with papermill, each only when something it depends on changed.

An executed notebook lands in `results/<profile>/notebooks/` after its last cell has succeeded,
never before. What it was made from is noted in `work/`, which is not committed: a fresh clone runs
everything itself.
"""

import hashlib
import json
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zqlib.errors import InputError, ZqError
from zqlib.files import atomic_output, read_json, sha256_file, write_json
from zqlib.parameters import Parameters
from zqlib.results import commit, device_name
from zqlib.scoring import data_digest, source_digest

__all__ = ["NOTEBOOKS", "NotebookError", "reproduce"]

NOTEBOOKS = ("synthesis", "wer", "layers", "ablation", "budget")
"""In the order in which they run; the last two only where the profile names what to compare."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # what an object without a better name prints


class NotebookError(ZqError):
    """A cell of a notebook failed; nothing was left in its place."""


def reproduce(
    root: Path,
    profile: str,
    only: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
) -> list[Path]:
    """Execute the notebooks of a profile.

    Args:
        root: a checkout of zqlib.
        profile: a file in `workflow/profiles`.
        only: one notebook instead of all.
        parameters: notebook parameters beside the profile.
        force: execute although nothing changed.

    Returns:
        The executed notebooks, up to date.

    Raises:
        InputError: the profile, the notebook or a parameter is unknown, or an input is missing.
        NotebookError: a cell failed, or the kernel.
    """
    if only is not None and only not in NOTEBOOKS:
        raise InputError(f"The notebook {only!r} is unknown; use one of {', '.join(NOTEBOOKS)}.")
    if parameters and "profile" in parameters:
        raise InputError("The profile is no free parameter; choose it with --profile.")
    values = {"profile": profile, **(parameters or {})}
    checked = Parameters.from_notebook(values)
    cut = Parameters(**{**vars(checked), "root": root}).load_profile()
    inputs = {
        "models": [sha256_file(_existing(model.resolve(root))) for model in cut.models],
        "data": [data_digest(_existing(split.resolve(root))) for split in cut.corpora],
    }
    if recordings := cut.resolve_calibration(root):
        inputs["recordings"] = [data_digest(_existing(recordings))]
    compared = {"budget": cut.budgets, "ablation": cut.ablations}
    if only and not compared.get(only, True):
        raise InputError(f"The profile {profile!r} names no {only}s to compare.")
    outputs = []
    names = [only] if only else [n for n in NOTEBOOKS if compared.get(n, True)]
    for name in names:
        source = root / "notebooks" / f"{name}.ipynb"
        output = root / "results" / profile / "notebooks" / f"{name}.ipynb"
        made_from = {
            "notebook": sha256_file(source),
            "profile": sha256_file(root / "workflow" / "profiles" / f"{profile}.json"),
            "parameters": json.loads(json.dumps(values)),
            "source": source_digest(),
            **inputs,
        }
        stamp = root / "work" / "notebooks" / f"{profile}-{name}.json"
        if not force and output.is_file() and _fresh(stamp, made_from, output):
            print(f"{output.relative_to(root)} is up to date")
        else:
            first = _noted(stamp).get("made_from") != made_from
            start_s = time.perf_counter()
            _execute(root, source, output, values)
            if first and not parameters:  # a repetition finds intermediate results in work/
                _write_cost(root, output, time.perf_counter() - start_s)
            write_json(stamp, {"made_from": made_from, "left": _left(output)})
        outputs.append(output)
    return outputs


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} does not exist; the profile names it.")
    return path


def _left(output: Path) -> dict[str, str]:
    """Digests of a notebook and of the results that it has left in its profile's folder."""
    folder = output.parents[1]
    patterns = (f"{output.stem}/*",) if output.stem in ("synthesis", "layers") else (
        f"records/{output.stem}_*", "hypotheses/*"
    )  # fmt: skip
    paths = [output, *(path for pattern in patterns for path in folder.glob(pattern))]
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(paths)
        if path.is_file()
    }


def _noted(stamp: Path) -> dict[str, Any]:
    """What a stamp says, nothing where it is missing or damaged."""
    try:
        noted = read_json(stamp)
    except InputError:
        return {}
    return noted if isinstance(noted, dict) else {}


def _fresh(stamp: Path, made_from: Mapping[str, Any], output: Path) -> bool:
    """Whether all that the same inputs once made is still there, unchanged."""
    noted = _noted(stamp)
    try:
        unchanged = dict(noted["left"]).items() <= _left(output).items()
        return bool(noted["made_from"] == made_from and unchanged)
    except (KeyError, TypeError, ValueError):
        return False


def _write_cost(root: Path, output: Path, duration_s: float) -> None:
    """Note what a whole notebook took; the memory is that of the largest kernel so far."""
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    cost = {
        "experiment": "cost",
        "profile": output.parents[1].name,
        "notebook": output.stem,
        "duration_s": round(duration_s, 1),
        "peak_memory_mb": round(peak_kib * 1024 / 1e6),
        "device": device_name(),
        "commit": commit(root),
    }
    write_json(output.parents[1] / "costs" / f"{output.stem}.json", cost)


def _execute(root: Path, source: Path, output: Path, values: Mapping[str, Any]) -> None:
    import nbformat
    import papermill

    unknown = sorted(set(values) - set(papermill.inspect_notebook(str(source))))
    if unknown:
        raise InputError(f"The notebook {source.name} has no parameter {unknown[0]!r}.")
    with atomic_output(output) as temporary:
        try:
            papermill.execute_notebook(
                # absolute, because papermill changes the working directory meanwhile
                str(source.resolve()), str(temporary.resolve()), parameters=dict(values),
                cwd=str(root),
                kernel_name="python3", log_output=True, progress_bar=False,
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            raise NotebookError(
                f"{source.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
            ) from error
        except RuntimeError as error:  # killed, for want of memory perhaps, or never started
            raise NotebookError(
                f"The kernel of {source.name} failed ({error}); try again."
            ) from error
        notebook = nbformat.read(temporary, as_version=4)  # type: ignore[no-untyped-call]
        _forget_the_clock(notebook)
        nbformat.write(notebook, temporary)  # type: ignore[no-untyped-call]


def _forget_the_clock(notebook: Any) -> None:
    """Drop times, progress bars, addresses and random names: the same run gives the same bytes."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for index, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{index}".encode()).hexdigest()[:8]
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                continue
            if plain := output.get("data", {}).get("text/plain"):
                output.data["text/plain"] = _ADDRESS.sub("", plain)
            if outputs and output.get("name") == outputs[-1].get("name") == "stdout":
                outputs[-1].text += output.text  # what came between decided where it was split
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
