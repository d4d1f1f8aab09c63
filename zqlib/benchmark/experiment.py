"""The experiments of the page on speed: engines side by side, the roofline, a simulated T4.

Each case is measured once and kept below `work/` under a name made of everything that it depends
on; interrupted, the experiment goes on with the next one. Timings are not the same bytes twice.
Each kind of machine has a folder for its records: a run replaces those of its own and no others.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from zqlib.benchmark.compare import compare
from zqlib.benchmark.layers import layers_of
from zqlib.benchmark.peak import Peak, measure_peak
from zqlib.benchmark.plan import BenchmarkPlan, Case, System
from zqlib.benchmark.preparation import synthesis_speeds
from zqlib.benchmark.prepare import case_features, write_files
from zqlib.benchmark.record import BenchmarkRecord, read_benchmarks, write_benchmark
from zqlib.benchmark.roofline import floor_us, layer_times, summarise_kinds
from zqlib.benchmark.simulate import T4, predict_ms, relative_error
from zqlib.benchmark.sources import Source
from zqlib.digests import cache_key
from zqlib.errors import InputError
from zqlib.files import write_json
from zqlib.integer.program import Program
from zqlib.machines import machine_folder
from zqlib.parameters import Parameters
from zqlib.quantized_model import load_quantized
from zqlib.results import commit, device_name, provenance

__all__ = [
    "benchmark_experiment",
    "benchmark_plan",
    "profile_sources",
    "roofline_experiment",
    "synthesis_experiment",
]

_SIMULATED_BATCHES = (1, 8, 64)
_SIMULATED_AUDIO_S = (5.0, 10.0, 20.0)
_SYNTHESIS_STEPS = 2


def benchmark_experiment(parameters: Parameters) -> list[BenchmarkRecord]:
    """Time the models of a profile on all engines of its benchmark.

    Raises:
        InputError: the profile has no benchmark, or see `zqlib.benchmark.compare.compare`.
    """
    plan = benchmark_plan(parameters)
    root, profile = parameters.root, parameters.profile
    records = []
    for source, caveats in profile_sources(parameters, plan):
        digest = source.digest
        folders = {
            case: root / "work" / "benchmark" / cache_key(
                "zqlib.benchmark.compare",
                model=digest, plan=plan.to_json(), case=vars(case), device=device_name()
            )
            for case in plan.cases
        }  # fmt: skip
        missing = [case for case, kept in folders.items() if len(_kept(kept)) < len(plan.systems)]
        if missing:
            for case, measured in zip(
                missing, compare(plan, source, root, profile, caveats, missing), strict=True
            ):
                for record in measured:
                    write_benchmark(folders[case], record)
        for folder in folders.values():
            records += _kept(folder)
    results = machine_folder(parameters.results / "benchmark")
    for record in records:
        write_benchmark(results, record)
    return records


def _kept(folder: Path) -> list[BenchmarkRecord]:
    return read_benchmarks(folder) if folder.is_dir() else []


def roofline_experiment(
    parameters: Parameters, measured: Sequence[BenchmarkRecord]
) -> Iterator[dict[str, Any]]:
    """Compare every layer with the machine's peak, and predict latencies from its figures.

    Args:
        parameters: of the notebook.
        measured: by `benchmark_experiment`, to validate the predictions with.

    Yields:
        A record per model. `peaks` and `kinds` are by number of threads. `layers` are those of the
        plan's first batch and length. `validation` has a prediction for the fastest engine at each
        precision. `simulated` holds predictions for a T4, which nothing was measured on.

    Raises:
        InputError: the profile has no benchmark.
    """
    plan = benchmark_plan(parameters)
    peaks = {threads: measure_peak(threads) for threads in plan.threads}
    for source, caveats in profile_sources(parameters, plan):
        model = source.load()
        frames = {
            audio_s: case_features(model, Case(1, audio_s, 1))[0].shape[2]
            for audio_s in {*_SIMULATED_AUDIO_S, *plan.audio_s}
        }
        features, lengths = case_features(model, plan.cases[0])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "program.zq")
            write_files(model, [System("cpu", "int8")], path.parent)
            program = load_quantized(path).program
            times = {t: layer_times(path, features, lengths, t) for t in plan.threads}
        record = {
            "experiment": "roofline",
            "profile": parameters.profile,
            "model": source.name,
            "family": model.family,
            "caveats": [*caveats, *source.caveats],
            "peaks": {str(threads): peak.to_json() for threads, peak in peaks.items()},
            "kinds": {
                str(t): [asdict(kind) for kind in summarise_kinds(times[t], peaks[t])]
                for t in plan.threads
            },
            "layers": {
                str(t): [
                    {**asdict(one.layer), "us": one.us, "gop_per_s": one.gop_per_s,
                     "floor_us": floor_us(one.layer, peaks[t])}
                    for one in times[t]
                ]
                for t in plan.threads
            },
            "validation": [
                _validate(program, frames[record.audio_s], record, peaks[record.threads])
                for record in _fastest(measured, source.name)
            ],
            "simulated": {
                "machine": asdict(T4),
                "predictions": [
                    _simulate(program, batch, audio_s, frames[audio_s])
                    for batch in _SIMULATED_BATCHES
                    for audio_s in _SIMULATED_AUDIO_S
                ],
            },
            "device": device_name(),
            "commit": commit(parameters.root),
            "provenance": provenance(model_sha256=source.digest, plan=plan.to_json()),
        }  # fmt: skip
        record = json.loads(json.dumps(record))  # as it is read back: tuples become lists
        kept = machine_folder(parameters.results / "roofline")
        write_json(kept / f"{source.name}.json", record)
        yield record


def synthesis_experiment(parameters: Parameters) -> Iterator[dict[str, Any]]:
    """Time steps of the synthesis, in the ways that there are, on the most threads of the plan.

    Yields:
        A record per model.

    Raises:
        InputError: the profile has no benchmark.
    """
    plan = benchmark_plan(parameters)
    threads, before = max(plan.threads), torch.get_num_threads()
    for source, caveats in profile_sources(parameters, replace(plan, random=())):
        torch.set_num_threads(threads)
        try:
            speeds = synthesis_speeds(source.load(), "cpu", _SYNTHESIS_STEPS)
        finally:
            torch.set_num_threads(before)
        record = {
            "experiment": "synthesis-speed",
            "profile": parameters.profile,
            "model": source.name,
            "caveats": list(caveats),
            "threads": threads,
            "speeds": speeds,
            "device": device_name(),
            "commit": commit(parameters.root),
            "provenance": provenance(model_sha256=source.digest),
        }
        folder = machine_folder(parameters.results / "synthesis-speed")
        write_json(folder / f"{source.name}.json", record)
        yield record


def benchmark_plan(parameters: Parameters) -> BenchmarkPlan:
    """What a profile times.

    Raises:
        InputError: the profile has no benchmark.
    """
    plan = parameters.load_profile().benchmark
    if plan is None:
        raise InputError(f"The profile {parameters.profile!r} names no benchmark.")
    return plan


def profile_sources(
    parameters: Parameters, plan: BenchmarkPlan
) -> Iterator[tuple[Source, tuple[str, ...]]]:
    """The profile's models that a plan names, and its architectures, with their caveats.

    Raises:
        InputError: the profile has no model of such a name.
    """
    models = {model.name: model for model in parameters.load_profile().models}
    if unknown := sorted({*plan.models} - {*models}):
        raise InputError(f"The benchmark names {unknown[0]!r}, which is no model of the profile.")
    for name in plan.models or models:
        yield Source(models[name].resolve(parameters.root)), models[name].caveats
    for name in plan.random:
        yield Source(random=name), ()


def _fastest(measured: Sequence[BenchmarkRecord], model: str) -> list[BenchmarkRecord]:
    """The engine of this machine's processor that is fastest in each case and precision."""
    best: dict[tuple[int, float, int, str], BenchmarkRecord] = {}
    for record in sorted(measured, key=lambda record: record.latency_ms):
        if record.model == model and record.device == device_name():
            key = (record.batch, record.audio_s, record.threads, record.precision)
            best.setdefault(key, record)
    return list(best.values())


def _validate(program: Program, frames: int, record: BenchmarkRecord, peak: Peak) -> dict[str, Any]:
    """What this machine's figures predict, beside what was measured on it."""
    layers = layers_of(program, record.batch, frames)
    predicted_ms = predict_ms(layers, peak.as_machine(record.device), record.precision)
    return {
        "batch": record.batch,
        "audio_s": record.audio_s,
        "threads": record.threads,
        "engine": record.engine,
        "precision": record.precision,
        "predicted_ms": predicted_ms,
        "measured_ms": record.latency_ms,
        "relative_error": relative_error(predicted_ms, record.latency_ms),
    }


def _simulate(program: Program, batch: int, audio_s: float, frames: int) -> dict[str, float]:
    layers = layers_of(program, batch, frames)
    float32, float16, int8 = (predict_ms(layers, T4, p) for p in ("float32", "float16", "int8"))
    return {
        "batch": batch,
        "audio_s": audio_s,
        "float32_ms": float32,
        "float16_ms": float16,
        "int8_ms": int8,
        "int8_over_float32": float32 / int8,
        "int8_over_float16": float16 / int8,
    }
