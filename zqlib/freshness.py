"""Whether a committed result is what its notebook would give today.

A run notes in `results/<profile>/provenance/<notebook>.json` what a page was made from and what it
has left. Compared with that are the notebook's code, its parameters, its part of the profile, the
modules of zqlib that it reaches, the packages that these import, and the digests of models and
data. Engines that a page does not time are left out: all give the same integers. What this machine
does not have is reported as not checked.
"""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from zqlib.benchmark.plan import BenchmarkPlan
from zqlib.digests import code_digest, data_digest, environment, imported_names, imports, sources
from zqlib.errors import InputError
from zqlib.files import read_json, sha256_file, write_json
from zqlib.parameters import Parameters
from zqlib.profiles import Profile, load_profile, profile_path

__all__ = [
    "NOTEBOOKS",
    "Status",
    "hypotheses_of",
    "inputs",
    "load_parameters",
    "made_from",
    "note",
    "notebooks",
    "page",
    "status",
    "statuses",
]

NOTEBOOKS = ("synthesis", "wer", "layers", "ablation", "shortcuts", "settings", "budget", "methods",
             "exports", "benchmark", "gpu")  # fmt: skip
_COMPARISONS = {"ablation": ("ablations",), "shortcuts": ("shortcuts",),
                "settings": ("settings", "repeats"), "budget": ("budgets",),
                "methods": ("methods",), "benchmark": ("benchmark",),
                "gpu": ("gpu",)}  # fmt: skip
"""Notebooks of what only some profiles compare, and the keys of a profile that say what."""
_ENGINES = {
    engine: (f"zqlib.integer.backends.{engine}", f"zqlib.integer.backends.{engine}.executor")
    for engine in ("cpu", "triton")
}
"""They give the integers of the reference, or a test fails: only what times one depends on it."""


@dataclass(frozen=True)
class Status:
    """Whether a page is what a run would give.

    Attributes:
        state: `fresh`, `stale`, or `missing`: never run, or not noted from what.
        reasons: what has changed.
        unchecked: inputs and packages that are not on this machine.
    """

    state: Literal["fresh", "stale", "missing"]
    reasons: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = ": ".join(filter(None, [self.state, ", ".join(self.reasons)]))
        return f"{text} (not checked: {', '.join(self.unchecked)})" if self.unchecked else text


def notebooks(profile: Profile) -> list[str]:
    """Names of the notebooks that have something to show for a profile."""
    return [n for n in NOTEBOOKS if getattr(profile, _COMPARISONS.get(n, ("name",))[0])]


def inputs(root: Path, profile: Profile, *, required: bool = False) -> dict[str, str]:
    """Digests of the models and data of a profile; nothing is built or fetched for it.

    Args:
        root: a checkout of zqlib.
        profile: names them.
        required: refuse what is not there, instead of leaving it out.

    Raises:
        InputError: a required input is missing.
    """
    named: list[tuple[str, Callable[[Path], Path | None], Callable[[Path], str]]] = [
        *((f"model {model.name}", model.resolve, sha256_file) for model in profile.models),
        *((f"{s.corpus} {s.split}", s.location, data_digest) for s in profile.corpora),
        ("recordings", profile.resolve_calibration, data_digest),
    ]
    digests = {}
    for label, locate, digest in named:
        try:
            if (path := locate(root)) is None:
                continue
            if not path.is_file():
                raise InputError(f"{path} does not exist; the profile names it.")
            digests[label] = digest(path)
        except InputError:
            if required:
                raise
    return digests


def made_from(
    root: Path, name: str, values: Mapping[str, Any], digests: Mapping[str, str]
) -> dict[str, Any]:
    """What the results of a notebook depend on, JSON-able.

    Args:
        root: a checkout of zqlib.
        name: of the notebook.
        values: its parameters.
        digests: of its models and data.
    """
    cells = _code(root / "notebooks" / f"{name}.ipynb")
    modules = {found for cell in cells for found in imported_names(cell)}
    others = {key for notebook, keys in _COMPARISONS.items() if notebook != name for key in keys}
    profile = read_json(profile_path(root, values["profile"]))
    plans = (profile.get(key) for key in _COMPARISONS.get(name, ()) if key in ("benchmark", "gpu"))
    systems = [s for plan in plans if plan for s in plan.get("systems", BenchmarkPlan().systems)]
    timed = {system.partition(":")[0] for system in systems}
    not_timed = [module for engine in _ENGINES.keys() - timed for module in _ENGINES[engine]]
    found: dict[str, Any] = json.loads(json.dumps({
        "code": [code_digest(cell) for cell in cells],
        "parameters": values,
        "profile": {key: value for key, value in profile.items() if key not in others},
        "sources": sources(modules, without=not_timed),
        "environment": environment({n.partition(".")[0] for n in modules} | imports(modules)),
        "inputs": digests,
    }))  # fmt: skip
    return found


def load_parameters(root: Path, values: Mapping[str, Any]) -> Parameters:
    """The parameters of a notebook that runs in a checkout.

    Raises:
        InputError: a parameter is unknown or of the wrong type.
    """
    return replace(Parameters.from_notebook(values), root=root)


def page(folder: Path, name: str) -> Path:
    """The executed notebook in a profile's folder of results."""
    return folder / "notebooks" / f"{name}.ipynb"


def note(folder: Path, name: str, made: Mapping[str, Any]) -> None:
    """Note what a page, just executed, was made from and what its run has left."""
    write_json(_noted(folder, name), {"made_from": made, "left": _left(folder, name)})


def statuses(root: Path, profile: str) -> dict[str, Status]:
    """Of every page of a profile, by notebook, for a run without parameters on what is here.

    Raises:
        InputError: there is no such profile, or it or a notebook is malformed.
    """
    loaded = load_profile(root, profile)
    digests = inputs(root, loaded)
    return {
        name: status(root, profile, name, made_from(root, name, {"profile": profile}, digests))
        for name in notebooks(loaded)
    }


def status(root: Path, profile: str, name: str, made: Mapping[str, Any]) -> Status:
    """Compare a page with what a run would make it from now.

    Args:
        root: a checkout of zqlib.
        profile: of the page.
        name: its notebook.
        made: what a run would make it from.

    Raises:
        InputError: there is no such profile, or it is malformed.
    """
    folder = load_profile(root, profile).folder(root)
    try:
        noted = read_json(_noted(folder, name))
        then, left = dict(noted["made_from"]), dict(noted["left"])
        reasons = [
            reason for part, now in made.items() for reason in _differences(part, then[part], now)
        ]
        packages = sorted(then["environment"].keys() - made["environment"].keys())
        absent = sorted(then["inputs"].keys() - made["inputs"].keys())
        unchecked = (*absent, *(f"package {name}" for name in packages))
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return Status("missing")
    if not page(folder, name).is_file():
        return Status("missing")
    now_left = _left(folder, name)
    reasons += [f"{path} lost or edited" for path in left if left[path] != now_left.get(path)]
    return Status("stale" if reasons else "fresh", tuple(reasons), unchecked)


def hypotheses_of(record: Path) -> Path:
    """The file that a record names; the record itself if it is damaged."""
    try:
        return record.parents[1] / str(read_json(record)["hypotheses"])
    except (InputError, KeyError, TypeError):
        return record


def _differences(part: str, then: Any, now: Any) -> list[str]:
    """What to say of one part of what a page was made from."""
    if part in ("code", "parameters", "profile"):
        return [] if then == now else [f"{part} changed"]
    # what was there and is not here cannot be checked: data, or an optional package
    here = {"inputs": then.keys() & now.keys(), "environment": now.keys()}
    names = here.get(part, then.keys() | now.keys())
    changed = sorted(name for name in names if then.get(name) != now.get(name))
    if part == "environment":
        return [f"{name} {then.get(name)} -> {now.get(name)}" for name in changed]
    return [f"{name} changed" for name in changed]


def _noted(folder: Path, name: str) -> Path:
    return folder / "provenance" / f"{name}.json"


def _left(folder: Path, name: str) -> dict[str, str]:
    """Digests of an executed notebook and of the results that it has left in a profile's folder."""
    records = list(folder.glob(f"records/{name}_*.json"))
    heard = {hypotheses_of(record) for record in records}
    beside = {
        "benchmark": ["roofline", "synthesis-speed"],
        "gpu": ["gpu-layers", "gpu-preparation"],
    }.get(name, [])
    kept = (path for kind in [name, *beside] for path in folder.glob(f"{kind}/**/*"))
    paths = [page(folder, name), *kept, *records, *heard]
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted({*paths})
        if path.is_file()
    }


def _code(notebook: Path) -> list[str]:
    """The code cells of a notebook, each of them Python."""
    try:
        cells = read_json(notebook)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{notebook} is not a notebook ({error!r}); restore it.") from error
    for cell in code:
        try:
            ast.parse(cell)
        except SyntaxError as error:
            raise InputError(f"{notebook} has a cell that is not Python ({error}).") from error
    return code
