"""Times engines side by side, in rounds in which they take turns.

What disturbs the machine for a while then disturbs all of them: a ratio of latencies can be
believed sooner than a latency. A turn is one run that does not count, after which caches hold the
model and threads are awake, and a few that do: one where it takes seconds, and that alone where it
takes longer than all of them may.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor
from tqdm import tqdm

from zqlib.benchmark import machine
from zqlib.benchmark.engines import Inputs, engine_versions
from zqlib.benchmark.gpu import GPU_ENGINES, engine_device
from zqlib.benchmark.machine import CpuTimes, busy_reasons
from zqlib.benchmark.plan import BenchmarkPlan, Case, System, parse_system
from zqlib.benchmark.prepare import case_features, file_of, fix_shapes, write_files
from zqlib.benchmark.record import BenchmarkRecord
from zqlib.benchmark.sources import Source
from zqlib.benchmark.statistics import speed_ratio, summarise
from zqlib.benchmark.worker import GpuWorker, Worker
from zqlib.results import commit, provenance

__all__ = ["compare", "files_of_case", "measure_rounds"]

_PER_TURN = 3
_SLOW_MS = 1000.0
_FEWEST_ROUNDS = 5  # for a system that reaches the time limit; fewer say nothing of the spread


def compare(
    plan: BenchmarkPlan,
    source: Source,
    root: Path = Path("."),
    profile: str = "bench",
    caveats: Sequence[str] = (),
    cases: Sequence[Case] | None = None,
    progress: bool = True,
    details: Mapping[str, Any] | None = None,
) -> Iterator[list[BenchmarkRecord]]:
    """Measure every case of a plan.

    Args:
        plan: what to compare.
        source: the model.
        root: a checkout, for the records.
        profile, caveats: for the records.
        cases: some of the plan's; None for all.
        progress: show a bar on standard error.
        details: what the provenance shall say besides.

    Yields:
        The records of each case, in the order of the plan's systems.

    Raises:
        InputError: a bad checkpoint, an engine that is missing, or too few processors.
        WorkerError: the process of an engine died.
    """
    cases = plan.cases if cases is None else cases
    for case in cases:
        machine.choose_cpus(case.threads)
    systems = [parse_system(text) for text in plan.systems]
    stated = {"plan": plan.to_json(), "engines": engine_versions(systems), **(details or {})}
    stated = json.loads(json.dumps(stated))  # as it is read back: tuples become lists
    model = source.load()
    digest = source.digest
    features = {case: case_features(model, case) for case in cases}
    family = model.family
    with tempfile.TemporaryDirectory() as folder:
        write_files(model, systems, Path(folder))
        del model  # a large one would stand in the way of the engines
        for case in cases:
            given = (plan, case, source, Path(folder), features[case], progress)
            yield [
                BenchmarkRecord(
                    profile=profile,
                    experiment="benchmark",
                    model=source.name,
                    family=family,
                    caveats=(*caveats, *source.caveats),
                    device=engine_device(measured["engine"]),
                    commit=commit(root),
                    provenance=provenance(model_sha256=digest, **stated),
                    **measured,
                )
                for measured in _case(*given)
            ]


def measure_rounds(
    workers: Sequence[Worker | GpuWorker], plan: BenchmarkPlan, bar: "tqdm[NoReturn]"
) -> list[list[list[float]]]:
    """Latencies in ms by worker, round and run: as many as the plan says; `bar` counts turns."""
    rounds: list[list[list[float]]] = [[] for _ in workers]

    def is_done(done: list[list[float]]) -> bool:
        enough = sum(map(len, done)) >= plan.repeats
        return enough or (len(done) >= _FEWEST_ROUNDS and sum(map(sum, done)) >= 1e3 * plan.max_s)

    while waiting := [i for i, done in enumerate(rounds) if not is_done(done)]:
        for index in waiting:
            first_run_ms = workers[index].loaded.first_run_ms
            warm_up = first_run_ms < 1e3 * plan.max_s
            repeats = 1 if first_run_ms > _SLOW_MS else _PER_TURN
            rounds[index].append(workers[index].measure(repeats, warm_up))
            bar.update()
    return rounds


def _case(
    plan: BenchmarkPlan,
    case: Case,
    source: Source,
    folder: Path,
    features: tuple[Tensor, Tensor],
    progress: bool,
) -> Iterator[dict[str, Any]]:
    """What each system's record says of one case."""
    systems = [parse_system(text) for text in plan.systems]
    cpus = machine.choose_cpus(case.threads)
    files = files_of_case(systems, folder, features[0])
    arrays = [tensor.numpy() for tensor in features]
    on_gpu = {system.engine for system in systems} <= {*GPU_ENGINES}
    with ExitStack() as stack:
        workers: list[Worker | GpuWorker] = []
        for system, file in files.items():
            inputs = Inputs(system, source, file, case.threads, *arrays)
            workers.append(GpuWorker(inputs) if on_gpu else Worker(inputs, cpus))
            stack.enter_context(workers[-1])
        processes = {os.getpid(), *(worker.process_id for worker in workers)}
        title = f"{source.name}, batch {case.batch}, {case.audio_s:g} s, {case.threads} threads"
        with tqdm(desc=title, unit="turn", disable=not progress) as bar:
            before = CpuTimes.read(processes)
            rounds = dict(zip(systems, measure_rounds(workers, plan, bar), strict=True))
            after = CpuTimes.read(processes)
        taken = after.others_pct(before), after.stolen_pct(before)
        baseline = parse_system(plan.baseline)
        expected = workers[systems.index(baseline)].loaded.tokens
        for worker in workers:
            latency = summarise(rounds[worker.system])
            ratio = speed_ratio(rounds[baseline], rounds[worker.system])
            tokens = worker.loaded.tokens
            yield {
                **vars(worker.system),
                **vars(case),
                "repeats": sum(map(len, rounds[worker.system])),
                "latency_ms": latency.median,
                "latency_p10_ms": latency.p10,
                "latency_p90_ms": latency.p90,
                "ratio": ratio.value,
                "ratio_ci95": (ratio.low, ratio.high),
                "baseline": plan.baseline,
                "rtfx": 1e3 * case.batch * case.audio_s / latency.median,
                "peak_memory_mb": worker.memory_mb(),
                "load_ms": worker.loaded.load_ms,
                "layers": worker.layers(),
                "agreement_pct": 100 * float((tokens == expected).mean()),
                "busy": busy_reasons(*taken, latency.p90 / latency.median),
                "others_pct": taken[0],
                "stolen_pct": taken[1],
            }


def files_of_case(
    systems: Sequence[System], folder: Path, features: Tensor
) -> dict[System, Path | None]:
    """What each system loads; ONNX models for features of this shape.

    Not for ONNX Runtime in int8: of a linear layer of known shape it makes a Gemm in float; nor
    for TensorRT, which is told the shape when it builds.
    """
    files: dict[System, Path | None] = {}
    for system in systems:
        name = file_of(system)
        path = folder / name if name else None
        kept = system.engine == "tensorrt" or system == System("onnxruntime", "int8")
        if path and path.suffix == ".onnx" and not kept:
            path = folder / "case" / path.name
            if path not in files.values():
                fix_shapes(folder / path.name, path, features)
        files[system] = path
    return files
