"""Tidy records: what was run, on what, with what result, and where it came from.

One JSON file per measured figure, below `results/<profile>/records/`. Notebooks, the book and
`zq results` show records and nothing else.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from zqlib.errors import InputError
from zqlib.files import read_json, write_json

__all__ = [
    "Record",
    "StoredRecord",
    "caveat_list",
    "commit",
    "device_name",
    "provenance",
    "read_records",
    "record_path",
    "write_record",
]

RECORD_VERSION = 1
_PACKAGES = ("torch", "numpy", "librosa", "soundfile", "jiwer")
_CPUINFO = Path("/proc/cpuinfo")
_VECTORS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "asimddp": "dot products",
}
"""Flags of Linux for what multiplies 8-bit integers, the fastest first."""


@dataclass(frozen=True)
class StoredRecord:
    """What all records have: a form in JSON. A subclass has a field `version` with a default."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_json` reads back to an equal record."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a mapping.

        Raises:
            InputError: a key is unknown or missing, a value has the wrong type, or the version is
                another.
        """
        if not isinstance(value, Mapping):
            raise InputError("A record must be a JSON object; remove the file and run again.")
        defaults = {field.name: field.default for field in fields(cls)}
        if odd := sorted(defaults.keys() ^ set(value)):
            raise InputError(f"The record lacks or does not know the key {odd[0]!r}; run again.")
        if value["version"] != defaults["version"]:
            raise InputError(f"The record has version {value['version']}; run again.")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        for name, kind in get_type_hints(cls).items():
            if not _fits(values[name], kind):
                raise InputError(f"The record has a {name} of the wrong type; run again.")
        return cls(**values)


@dataclass(frozen=True)
class Record(StoredRecord):
    """The word error rate of one engine on one corpus split.

    Attributes:
        profile, experiment: what was run.
        model, family: the float model.
        scheme: `float`, `w8a8`, ...
        calibration: `none`, `synthetic`, `noise`, `real` or one of `zqlib.simulations`.
        engine: `float` or the backend that ran the integer program.
        corpus, split: the data.
        utterances, words, audio_s: its size.
        wer_pct, wer_ci95: per cent, and the 95 % bootstrap interval.
        delta_wer_pct, delta_ci95: points above the float model of the same run on the same
            utterances, paired; None for the float model itself.
        size_mb: of the file that holds the model (float: 4 bytes per stored value), 10^6 bytes.
        caveats: what a reader must know: a subset, a stand-in, a re-estimated statistic.
        hypotheses: path of the stored hypotheses, relative to the profile's folder.
        device, commit: where, and of which source.
        provenance: versions, threads, seeds, configs and digests of weights and data.
        variant: tells apart records that differ in nothing else, such as settings of an ablation.
    """

    profile: str
    experiment: str
    model: str
    family: str
    scheme: str
    calibration: str
    engine: str
    corpus: str
    split: str
    utterances: int
    words: int
    audio_s: float
    wer_pct: float
    wer_ci95: tuple[float, float]
    delta_wer_pct: float | None
    delta_ci95: tuple[float, float] | None
    size_mb: float
    caveats: tuple[str, ...]
    hypotheses: str
    device: str
    commit: str
    provenance: Mapping[str, Any]
    variant: str = ""
    version: int = RECORD_VERSION


def _fits(value: object, kind: Any) -> bool:
    """Whether `value` is of a type that the fields of records have."""
    if isinstance(kind, UnionType):
        return any(_fits(value, member) for member in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if kinds[1:] == (...,):
            return all(_fits(item, kinds[0]) for item in value)
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return type(value) in (int, float)
    return isinstance(value, get_origin(kind) or kind) and not isinstance(value, bool)


def record_path(results: Path, record: Record) -> Path:
    """Where a record is kept below `results/`: one place for each thing that can be measured."""
    parts = (
        record.experiment, record.model, record.scheme, record.calibration, record.engine,
        record.corpus, record.split, record.variant,
    )  # fmt: skip
    name = "_".join(part for part in parts if part)
    return results / record.profile / "records" / f"{name}.json"


def write_record(results: Path, record: Record) -> Path:
    """Write a record atomically; the path."""
    path = record_path(results, record)
    write_json(path, record.to_json())
    return path


def read_records(results: Path, profile: str | None = None) -> list[Record]:
    """All records below `results/`, or those of one profile, sorted by path.

    Raises:
        InputError: a record is damaged, or the profile has none.
    """
    folders = sorted(results.glob("*")) if profile is None else [results / profile]
    paths = [path for folder in folders for path in sorted(folder.glob("records/*.json"))]
    if not paths:
        raise InputError(
            f"There are no records in {results / (profile or '')}; make them with `zq reproduce`."
        )
    records = []
    for path in paths:
        try:
            records.append(Record.from_json(read_json(path)))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return records


def caveat_list(records: Iterable[Record]) -> str:
    """What a reader must know of some records: a Markdown list, with the data that it concerns."""
    concerned: dict[str, dict[str, None]] = {}
    for record in records:
        for caveat in record.caveats:
            data = f"`{record.model}` on {record.corpus} {record.split}"
            concerned.setdefault(caveat, {})[data] = None
    return "\n".join(f"- *{caveat}*: {'; '.join(data)}" for caveat, data in concerned.items())


def provenance(**details: Any) -> dict[str, Any]:
    """Versions and threads of this process, with whatever else a run wants to state.

    The time of day is left out on purpose: the same run gives the same bytes.
    """
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("zqlib", *_PACKAGES)}
    return {
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        **details,
    }


@cache
def device_name() -> str:
    """The processor's name, vector instructions and number of cores, as the system tells them.

    Clouds hide which processor it is: of two "AMD EPYC", the one with VNNI multiplies 8-bit
    integers several times as fast.
    """
    name = platform.processor() or platform.machine()
    instructions = ""
    if _CPUINFO.is_file():
        lines = (line.partition(":") for line in _CPUINFO.read_text().splitlines())
        told = {key.strip(): value.strip() for key, _, value in lines}
        name = told.get("model name", name)
        flags = told.get("flags", told.get("Features", "")).split()
        instructions = next((f" with {_VECTORS[flag]}" for flag in _VECTORS if flag in flags), "")
    return f"CPU {name}{instructions}, {os.cpu_count()} cores"


@cache
def commit(root: Path) -> str:
    """The git commit of a checkout, with `-dirty` when its sources differ from it.

    `results/` is left out of that: a run changes it. A copy of a checkout without its history can
    be told its commit by the environment variable ZQ_COMMIT.
    """
    if told := os.environ.get("ZQ_COMMIT"):
        return told
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head[:12]}-dirty" if changed else head[:12]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
