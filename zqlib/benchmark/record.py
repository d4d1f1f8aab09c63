"""The record of one engine in one case of a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zqlib.files import read_json, write_json
from zqlib.results import StoredRecord

__all__ = ["BenchmarkRecord", "read_benchmarks", "write_benchmark"]


@dataclass(frozen=True)
class BenchmarkRecord(StoredRecord):
    """Latency and memory of one engine, measured in turns with others.

    Attributes:
        profile, experiment: what was run; the profile `bench` is that of `zq bench`.
        model, family: the float model.
        engine, precision: what computed; the features and the result may be float all the same.
        batch, audio_s: utterances at a time and seconds of each. The front-end is not timed.
        threads: that computed, bound to as many processors.
        repeats: measured runs, without the one before those of each round.
        latency_ms, latency_p10_ms, latency_p90_ms: of a whole batch: median and quantiles.
        ratio, ratio_ci95: how many times faster than `baseline`, with a bootstrap interval.
        baseline: `engine:precision`, of the same rounds.
        rtfx: seconds of audio per second, at the median.
        peak_memory_mb: of the process from loading the model to the last run, beyond what it held
            with the engine's library imported, in 10^6 bytes; main memory only. Where engines of
            a GPU were compared alone: of what torch allocated of its memory.
        load_ms: from the file to a model that can run, what it compiles included.
        layers: how many convolutions and linear layers multiplied 8-bit integers (`integer`), and
            how many floats (`float`).
        agreement_pct: frames whose best class is the baseline's. A check that the engine computes
            the model, on noise and with ranges from noise: no accuracy.
        busy: what disturbed the measurement; nothing on a quiet machine.
        others_pct, stolen_pct: share of the processors that other processes and the
            hypervisor took meanwhile.
        caveats: what a reader must know.
        device, commit, provenance: where, of which source, with which versions.
    """

    profile: str
    experiment: str
    model: str
    family: str
    engine: str
    precision: str
    batch: int
    audio_s: float
    threads: int
    repeats: int
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    ratio: float
    ratio_ci95: tuple[float, float]
    baseline: str
    rtfx: float
    peak_memory_mb: float
    load_ms: float
    layers: Mapping[str, int]
    agreement_pct: float
    busy: tuple[str, ...]
    others_pct: float
    stolen_pct: float
    caveats: tuple[str, ...]
    device: str
    commit: str
    provenance: Mapping[str, Any]
    version: int = 1


def write_benchmark(folder: Path, record: BenchmarkRecord) -> Path:
    """Write a record below a folder, atomically; the path."""
    name = (
        f"{record.model}_{record.engine}_{record.precision}_batch{record.batch}"
        f"_{record.audio_s:g}s_{record.threads}threads.json"
    )
    write_json(folder / name, record.to_json())
    return folder / name


def read_benchmarks(folder: Path) -> list[BenchmarkRecord]:
    """All records in a folder, sorted by file name.

    Raises:
        InputError: one is damaged.
    """
    return [BenchmarkRecord.from_json(read_json(path)) for path in sorted(folder.glob("*.json"))]
