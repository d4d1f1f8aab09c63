"""What the page on speed shows: this machine, measured, and others that there are records of."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from zqlib.benchmark.experiment import (
    benchmark_experiment,
    benchmark_plan,
    profile_sources,
    roofline_experiment,
    synthesis_experiment,
)
from zqlib.benchmark.plan import Case
from zqlib.benchmark.record import BenchmarkRecord, read_benchmarks
from zqlib.files import read_json
from zqlib.machines import machine_folder, other_machines, unchanged_since
from zqlib.parameters import Parameters

__all__ = ["MachineSpeeds", "speed_experiment"]

_KERNELS = "zqlib.integer.backends.cpu"


@dataclass(frozen=True)
class MachineSpeeds:
    """What was measured on one kind of machine.

    Attributes:
        device: its name.
        records: engines side by side, in the order of the plan.
        rooflines: by model, its layers, the machine's peaks and predictions.
        syntheses: by model, steps per second of the synthesis.
        commits: that were measured.
        current: whether their kernels are those of today.
    """

    device: str
    records: Sequence[BenchmarkRecord]
    rooflines: Sequence[dict[str, Any]]
    syntheses: Sequence[dict[str, Any]]
    commits: Sequence[str]
    current: bool


def speed_experiment(parameters: Parameters) -> list[MachineSpeeds]:
    """Measure on this machine; then read its records, and after them those of every other.

    Raises:
        InputError: the profile has no benchmark, or see `zqlib.benchmark.compare.compare`.
    """
    list(roofline_experiment(parameters, benchmark_experiment(parameters)))
    list(synthesis_experiment(parameters))
    folder = parameters.results / "roofline"
    machines = (machine_folder(folder), *other_machines(folder))
    return [_read(parameters, machine.name) for machine in machines]


def _read(parameters: Parameters, machine: str) -> MachineSpeeds:
    """The records of a machine, without models and cases that the plan names no more."""
    plan, results = benchmark_plan(parameters), parameters.results
    models = [source.name for source, _ in profile_sources(parameters, plan)]
    found = {
        (r.model, Case(r.batch, r.audio_s, r.threads), f"{r.engine}:{r.precision}"): r
        for r in read_benchmarks(results / "benchmark" / machine)
    }
    records = [found[k] for k in product(models, plan.cases, plan.systems) if k in found]
    rooflines = _of_models(results / "roofline" / machine, models)
    commits = sorted({r.commit for r in records} | {r["commit"] for r in rooflines})
    return MachineSpeeds(
        device=rooflines[0]["device"],
        records=records,
        rooflines=rooflines,
        syntheses=_of_models(results / "synthesis-speed" / machine, models),
        commits=commits,
        current=all(unchanged_since(parameters.root, c, _KERNELS) for c in commits),
    )


def _of_models(folder: Path, models: Sequence[str]) -> list[dict[str, Any]]:
    paths = (folder / f"{model}.json" for model in models)
    return [read_json(path) for path in paths if path.is_file()]
