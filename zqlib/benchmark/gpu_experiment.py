"""The experiments of the page on speed on a GPU.

Where there is a GPU they run and leave their records in the profile's folder of results; where
there is none, the page shows the records that are there, each of which names its device. A GPU is
often lent, for minutes, on a machine without notebooks. So what is there for this device and these
kernels is not measured again, and `python -m zqlib.benchmark.gpu_experiment local 300` begins
nothing more after 300 seconds.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zqlib.benchmark import preparation
from zqlib.benchmark.compare import compare
from zqlib.benchmark.experiment import profile_sources
from zqlib.benchmark.gpu import engine_device
from zqlib.benchmark.gpu_layers import layer_times, products
from zqlib.benchmark.gpu_peak import DATA_SHEETS, measure_gpu_peak
from zqlib.benchmark.layers import Layer, layers_of
from zqlib.benchmark.plan import BenchmarkPlan, Case, System
from zqlib.benchmark.prepare import case_features, write_files
from zqlib.benchmark.record import BenchmarkRecord, read_benchmarks, write_benchmark
from zqlib.benchmark.roofline import summarise_kinds
from zqlib.benchmark.simulate import predict_ms, relative_error
from zqlib.benchmark.sources import Source
from zqlib.digests import sources
from zqlib.errors import InputError, ZqError
from zqlib.files import read_json, write_json
from zqlib.integer.backends.triton import Executor
from zqlib.machines import unchanged_since
from zqlib.parameters import Parameters
from zqlib.quantized_model import load_quantized
from zqlib.results import commit, provenance

__all__ = ["GpuResults", "gpu_experiment", "main", "measure"]

_SYNTHESIS_STEPS = 40
_KERNELS = "zqlib.integer.backends.triton"
_OURS = "triton:int8"


@dataclass(frozen=True)
class GpuResults:
    """What the page shows.

    Attributes:
        records: engines side by side.
        layers: by model, its layers and products, the GPU's peak and predictions.
        preparations: by model, what it takes to make it.
        current: whether the kernels that were measured are those of today.
        missing: what the plan names and no record has, in words.
    """

    records: Sequence[BenchmarkRecord]
    layers: Sequence[dict[str, Any]]
    preparations: Sequence[dict[str, Any]]
    current: bool
    missing: Sequence[str]


def gpu_experiment(parameters: Parameters) -> GpuResults:
    """Measure where there is a GPU; elsewhere read what was measured.

    Raises:
        InputError: the profile has no plan for a GPU; or there is neither a GPU nor a record.
    """
    folder = parameters.results
    if torch.cuda.is_available():
        for _ in measure(parameters):
            pass
    records = read_benchmarks(folder / "gpu")
    layers, preparations = (
        [read_json(path) for path in sorted(folder.glob(f"{kind}/*.json"))]
        for kind in ("gpu-layers", "gpu-preparation")
    )
    commits = {r.commit for r in records} | {r["commit"] for r in layers}
    if not commits:
        raise InputError(
            f"There is no GPU here and no record in {folder / 'gpu'}; run this page on a machine "
            "with an NVIDIA GPU first."
        )
    current = all(unchanged_since(parameters.root, commit, _KERNELS) for commit in commits)
    return GpuResults(records, layers, preparations, current, _missing(parameters, records))


def measure(parameters: Parameters) -> Iterator[str]:
    """Measure model after model what is not there yet, and write each record at once.

    Compiled networks come last: they take minutes, and only ratios to their own rounds.

    Yields:
        What has been done, for whoever has to stop early.

    Raises:
        InputError: the profile has no plan for a GPU, or this machine no GPU.
    """
    plan = _plan(parameters)
    folder = parameters.results
    given = (parameters.root, parameters.profile)
    for source, caveats in profile_sources(parameters, plan):
        layers_file, preparation_file = (
            folder / kind / f"{source.name}.json" for kind in ("gpu-layers", "gpu-preparation")
        )
        for part in _parts(plan):
            lacking = {case: _lacking(folder, source, part, case) for case in part.cases}
            cases = [case for case, systems in lacking.items() if systems]
            for measured in compare(part, source, *given, caveats, cases, details=_made_of()):
                case = Case(measured[0].batch, measured[0].audio_s, 1)
                for record in measured:
                    if f"{record.engine}:{record.precision}" in lacking[case]:
                        write_benchmark(folder / "gpu", record)
                yield f"{source.name}, batch {case.batch}, {case.audio_s:g} s"
        common = {
            "profile": parameters.profile,
            "model": source.name,
            "caveats": [*caveats, *source.caveats],
            "device": engine_device("triton"),
            "commit": commit(parameters.root),
        }
        records = [r for r in read_benchmarks(folder / "gpu") if r.model == source.name]
        if not (_is_current(layers_file, _made_of()) and _predicts(layers_file, records)):
            made_of = provenance(model_sha256=source.digest, **_made_of())
            layers = common | {"provenance": made_of} | _layers(plan, source, records)
            write_json(layers_file, layers)
            yield f"{source.name}, layers"
        making = {"sources": sources([preparation.__name__]), "cuda": torch.version.cuda}
        if not _is_current(preparation_file, making):
            made_of = provenance(model_sha256=source.digest, **making)
            write_json(preparation_file, common | {"provenance": made_of} | _preparation(source))
            yield f"{source.name}, preparation"


def _is_current(path: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether a file is of this device and made of this."""
    if not path.is_file():
        return False
    found = read_json(path)
    same = {name: found["provenance"].get(name) for name in made_of} == made_of
    return same and bool(found["device"] == engine_device("triton"))


def _predicts(path: Path, records: Sequence[BenchmarkRecord]) -> bool:
    """Whether a file's predictions are those of these records."""
    predictions = read_json(path)["predictions"]
    return [p["measured_ms"] for p in predictions] == [r.latency_ms for r in records]


def _plan(parameters: Parameters) -> BenchmarkPlan:
    plan = parameters.load_profile().gpu
    if plan is None:
        raise InputError(f"The profile {parameters.profile!r} names nothing to time on a GPU.")
    return plan


def _parts(plan: BenchmarkPlan) -> list[BenchmarkPlan]:
    """The plan without compiled networks, then these beside the baseline and our kernels."""
    compiled = tuple(system for system in plan.systems if system.startswith("torch-compile"))
    others = tuple(system for system in plan.systems if system not in compiled)
    beside = tuple(dict.fromkeys((plan.baseline, *compiled, _OURS)))
    return [replace(plan, systems=s) for s in (others, beside if compiled else ()) if s]


def _lacking(folder: Path, source: Source, plan: BenchmarkPlan, case: Case) -> list[str]:
    """The systems of a plan that have no record of a case, of this device and these kernels."""
    found = {
        f"{r.engine}:{r.precision}"
        for r in read_benchmarks(folder / "gpu")
        if (r.model, r.batch, r.audio_s) == (source.name, case.batch, case.audio_s)
        and r.device == engine_device(r.engine)
        and r.provenance["kernels"] == _kernels()
    }
    return [system for system in plan.systems if system not in found]


def _missing(parameters: Parameters, records: Sequence[BenchmarkRecord]) -> list[str]:
    """What was not measured, because the time of a lent GPU is short, say."""
    plan = _plan(parameters)
    found = {(r.model, r.batch, r.audio_s, f"{r.engine}:{r.precision}") for r in records}
    missing = []
    for source, _ in profile_sources(parameters, plan):
        for case in plan.cases:
            key = (source.name, case.batch, case.audio_s)
            lacking = [system for system in plan.systems if (*key, system) not in found]
            if lacking:
                what = "all engines" if len(lacking) == len(plan.systems) else ", ".join(lacking)
                words = f"`{source.name}`, batch {case.batch}, {case.audio_s:g} s: {what}"
                missing.append(words)
    return missing


def _kernels() -> dict[str, str]:
    """Digests of the engine's modules."""
    found = sources([_KERNELS]).items()
    return {name: digest for name, digest in found if name.startswith(_KERNELS)}


def _made_of() -> dict[str, Any]:
    return {"kernels": _kernels(), "cuda": torch.version.cuda}


def _layers(
    plan: BenchmarkPlan, source: Source, records: Sequence[BenchmarkRecord]
) -> dict[str, Any]:
    """Layers and products at the smallest and the largest batch, and predictions of all records."""
    model = source.load()
    with tempfile.TemporaryDirectory() as name:
        write_files(model, [System("triton", "int8")], Path(name))
        quantized = load_quantized(Path(name, "program.zq"))
    executor = Executor(quantized.program)
    peak = measure_gpu_peak()
    kinds, beside = {}, {}
    for batch in sorted({min(plan.batches), max(plan.batches)}):
        features, lengths = case_features(model, Case(batch, plan.audio_s[0], 1))
        times = layer_times(executor, quantized.quantize_features(features), lengths)
        kinds[str(batch)] = list(map(asdict, summarise_kinds(times, peak)))
        beside[str(batch)] = products(executor, times)
    frames = {
        audio_s: case_features(model, Case(1, audio_s, 1))[0].shape[2] for audio_s in plan.audio_s
    }
    found = {
        "experiment": "gpu-layers",
        "audio_s": plan.audio_s[0],
        "peak": peak.to_json(),
        "kinds": kinds,
        "products": beside,
        "predictions": [
            _predict(layers_of(quantized.program, r.batch, frames[r.audio_s]), r) for r in records
        ],
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _predict(layers: Sequence[Layer], record: BenchmarkRecord) -> dict[str, Any]:
    """What the model of the simulated T4 says for this GPU, beside what was measured on it."""
    machine = DATA_SHEETS.get(record.device)
    predicted_ms = predict_ms(layers, machine, record.precision) if machine else None
    error = None if predicted_ms is None else relative_error(predicted_ms, record.latency_ms)
    return {
        "engine": record.engine,
        "precision": record.precision,
        "batch": record.batch,
        "audio_s": record.audio_s,
        "machine": asdict(machine) if machine else None,
        "predicted_ms": predicted_ms,
        "measured_ms": record.latency_ms,
        "relative_error": error,
    }


def _preparation(source: Source) -> dict[str, Any]:
    model = source.load()
    return {
        "experiment": "gpu-preparation",
        "synthesis": preparation.synthesis_speeds(model, "cuda", _SYNTHESIS_STEPS),
        "quantization": preparation.quantization_times(model, "cuda"),
    }


def main(profile: str, seconds: str = "inf") -> int:
    """Measure in this checkout; begin nothing more after so many seconds."""
    end = time.monotonic() + float(seconds)
    try:
        for done in measure(Parameters(profile=profile)):
            print(done, flush=True)
            if time.monotonic() > end:
                break
    except ZqError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
