"""The jobs of a reproduction, which Snakemake runs (`workflow/Snakefile`).

A plan lists them by kind, each with the jobs that it needs. The name of a job ends in a digest of
everything that it depends on, and done, it leaves an empty file of that name below `work/jobs/`: a
job whose file is there need not run again, wherever it ran and whatever the time of files says.

    synthesize  a model's synthetic set
    quantize    an integer program
    evaluate    a system on one split, or on a shard of it
    merge       the shards of an evaluation
    compare     a model's layers, float against integer
    notebook    a page: it finds what the other jobs have made, and would make it itself

A job is one process, `python -m zqlib.workflow KIND NAME`; it ends with its parent.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zqlib.costs import note_cost, write_page_cost
from zqlib.digests import cache_key
from zqlib.errors import ZqError
from zqlib.experiments.ablation import ablation_systems
from zqlib.experiments.layers import compare_layers, layers_path
from zqlib.experiments.scoring import hear, hypotheses_path, merge_shards
from zqlib.experiments.synthesis import synthetic_set
from zqlib.experiments.systems import Checkpoint, System, checkpoints
from zqlib.experiments.wer import wer_systems
from zqlib.files import read_json
from zqlib.freshness import load_parameters
from zqlib.notebooks import execute
from zqlib.processes import end_with_parent
from zqlib.profiles import CorpusSplit

__all__ = ["Job", "PLAN", "main", "plan"]

PLAN = Path("work") / "plan.json"
_SYSTEMS: dict[str, Callable[[Checkpoint], list[System]]] = {
    "ablation": ablation_systems,
    "wer": wer_systems,
}


@dataclass(frozen=True)
class Job:
    """One process of a reproduction.

    Attributes:
        kind: see above.
        name: with a digest of what it depends on.
        work: what it is told, JSON-able.
        needs: stamps of the jobs before it.
    """

    kind: str
    name: str
    work: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def stamp(self) -> str:
        """The file that it leaves, relative to the checkout."""
        return f"work/jobs/{self.kind}/{self.name}"


def plan(
    root: Path, values: Mapping[str, Any], pages: Mapping[str, Mapping[str, Any]], shards: int = 1
) -> dict[str, Any]:
    """What has to be done for some pages of a profile.

    Args:
        root: a checkout.
        values: the notebooks' parameters.
        pages: names of notebooks, and what each is made from.
        shards: parts that every evaluation is cut into.

    Returns:
        A JSON-able plan: the parameters, `jobs` by kind and name, and the `targets`, by stamp.
    """
    jobs: dict[str, Job] = {}
    models = checkpoints(load_parameters(root, values))
    targets = []
    for name, made in pages.items():
        before = [job for model in models for job in _before(name, model, shards)]
        jobs |= {job.stamp: job for job in before}
        page = Job(
            "notebook",
            f"{values['profile']}-{name}-{cache_key(made=made)}",
            {"notebook": name, "made_from": made},
            tuple(sorted({job.stamp for job in before})),
        )
        jobs[page.stamp] = page
        targets.append(page.stamp)
    kinds: dict[str, dict[str, Any]] = {}
    for job in jobs.values():
        kinds.setdefault(job.kind, {})[job.name] = asdict(job)
    return {"parameters": dict(values), "jobs": kinds, "targets": targets}


def _before(page: str, model: Checkpoint, shards: int) -> Iterable[Job]:
    """The jobs of one model that a page needs, each after those that it needs itself."""
    work: dict[str, Any] = {"model": model.name}
    config = model.profile.synthesis
    key = cache_key("zqlib.synthesis", model=model.sha256, **vars(config))
    synthesis = Job("synthesize", f"{model.name}-{key}", work)
    if page in ("synthesis", "layers", "shortcuts", "settings", "methods"):
        yield synthesis
    split = next(model.splits(), None)
    if page == "layers" and split:
        yield Job("compare", layers_path(model, split).stem, work, (synthesis.stamp,))
    for number, system in enumerate(_SYSTEMS.get(page, _none)(model)):
        needs: tuple[str, ...] = ()
        work = {"model": model.name, "experiment": page, "system": number}
        if system.recipe:
            if system.recipe.calibration == "synthetic":
                yield synthesis
                needs = (synthesis.stamp,)
            program = Job("quantize", model.program(system.recipe).stem, work, needs)
            yield program
            needs = (program.stamp,)
        for split in model.splits():
            yield from _evaluations(model, system, split, shards, work, needs)


def _none(_: Checkpoint) -> list[System]:
    return []


def _evaluations(
    model: Checkpoint,
    system: System,
    split: CorpusSplit,
    shards: int,
    work: Mapping[str, Any],
    needs: tuple[str, ...],
) -> Iterable[Job]:
    """A system on a split: one job, or its shards and their merger."""
    work = {**work, "corpus": split.corpus, "split": split.split, "shards": shards}
    parts = []
    for index in range(shards):
        shard = (index, shards)
        name = hypotheses_path(model, system, split, shard).stem
        parts.append(Job("evaluate", name, {**work, "shard": shard}, needs))
    yield from parts
    if shards > 1:
        name = hypotheses_path(model, system, split).stem
        yield Job("merge", f"{name}-{shards}", work, tuple(part.stamp for part in parts))


def run(root: Path, kind: str, name: str) -> None:
    """Do one job of the plan in a checkout.

    Raises:
        ZqError: it cannot be done.
    """
    found = read_json(root / PLAN)
    job = Job(**found["jobs"][kind][name])
    start_s = time.perf_counter()
    _do(root, found["parameters"], kind, job.work)
    note_cost(root, job.stamp, time.perf_counter() - start_s)
    if kind == "notebook" and found["parameters"].keys() == {"profile"}:
        folder = load_parameters(root, found["parameters"]).results
        write_page_cost(root, folder, job.work["notebook"], [*job.needs, job.stamp])


def _do(root: Path, values: Mapping[str, Any], kind: str, work: Mapping[str, Any]) -> None:
    if kind == "notebook":
        execute(root, work["notebook"], values, work["made_from"])
        return
    models = {model.name: model for model in checkpoints(load_parameters(root, values))}
    model = models[work["model"]]
    if kind == "synthesize":
        synthetic_set(model)
    elif kind == "compare":
        compare_layers(model, next(model.splits()))
    else:
        _run_for_system(model, kind, work)


def _run_for_system(model: Checkpoint, kind: str, work: Mapping[str, Any]) -> None:
    system = _SYSTEMS[work["experiment"]](model)[work["system"]]
    if kind == "quantize":
        assert system.recipe is not None
        model.make_program(system.recipe)
        return
    splits = {(split.corpus, split.split): split for split in model.splits()}
    split = splits[work["corpus"], work["split"]]
    if kind == "merge":
        merge_shards(model, system, split, work["shards"])
    else:
        index, count = work["shard"]
        hear(model, system, split, (index, count))


def main(kind: str, name: str, log: str) -> int:
    """Do one job; what went wrong, one sentence, is left in `log` for `zq reproduce` to tell."""
    end_with_parent()
    try:
        run(Path("."), kind, name)
    except (ZqError, OSError) as error:
        Path(log).write_text(" ".join(str(error).split()), encoding="utf-8")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
