"""What a benchmark compares."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from zqlib.errors import InputError

__all__ = ["BenchmarkPlan", "Case", "System", "parse_system"]

_PRECISIONS = {
    "torch": ("float32", "bfloat16"),
    "torch-cuda": ("float32", "tf32", "float16", "bfloat16"),
    "torch-compile": ("float32", "tf32", "float16", "bfloat16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "tensorrt": ("float32", "float16", "int8"),
    "cpu": ("int8",),
    "triton": ("int8",),
    "reference": ("int8",),
}


@dataclass(frozen=True, order=True)
class System:
    """An engine at a precision, written `engine:precision`."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine}:{self.precision}"


@dataclass(frozen=True)
class Case:
    """What all engines get alike.

    Attributes:
        batch: utterances.
        audio_s: of each, in seconds.
        threads: that may compute; each engine is bound to as many processors.
    """

    batch: int
    audio_s: float
    threads: int


def parse_system(text: str) -> System:
    """Read `engine:precision`.

    Raises:
        InputError: no such engine, or not at this precision.
    """
    engine, _, precision = text.partition(":")
    if engine not in _PRECISIONS:
        raise InputError(f"The engine {engine!r} is unknown; use {', '.join(_PRECISIONS)}.")
    if precision not in _PRECISIONS[engine]:
        known = " or ".join(f"{engine}:{name}" for name in _PRECISIONS[engine])
        raise InputError(f"{text!r} is no engine with its precision; use {known}.")
    return System(engine, precision)


@dataclass(frozen=True)
class BenchmarkPlan:
    """A comparison.

    Attributes:
        systems: as `engine:precision`; every one of them runs or the comparison fails.
        baseline: the system that ratios are formed with.
        batches, audio_s, threads: every combination of them is a case.
        models: names of a profile's models; empty for all of them.
        random: architectures to time with random weights, beside a profile's models; keys of
            `zqlib.benchmark.sources.RANDOM`.
        repeats: measured runs of each system in a case, in rounds of `zqlib.benchmark.compare`.
        max_s: measured seconds after which a slow system may have fewer.
    """

    systems: tuple[str, ...] = (
        "openvino:float32", "openvino:bfloat16", "openvino:int8", "onnxruntime:float32",
        "onnxruntime:int8", "torch:float32", "torch:bfloat16", "cpu:int8",
    )  # fmt: skip
    baseline: str = "openvino:float32"
    batches: tuple[int, ...] = (1,)
    audio_s: tuple[float, ...] = (10.0,)
    threads: tuple[int, ...] = (1, 2)
    models: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    repeats: int = 30
    max_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("systems", "batches", "audio_s", "threads"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values or len({*values}) < len(values):
                raise InputError(f"A benchmark needs {name}, each named once.")
        for system in self.systems:
            parse_system(system)
        if self.baseline not in self.systems:
            raise InputError(
                f"The baseline {self.baseline!r} is not among the engines to compare; add it or "
                "choose another."
            )
        counts = (*self.batches, *self.threads, self.repeats)
        if not all(type(count) is int and count >= 1 for count in counts):
            raise InputError("Batches, threads and repeats are whole numbers of at least 1.")
        seconds = (*self.audio_s, self.max_s)
        if not all(type(s) in (int, float) and 0.1 <= s <= 600 for s in seconds):
            raise InputError("Lengths of audio and the time limit are 0.1 to 600 seconds.")

    @property
    def cases(self) -> list[Case]:
        """Every combination."""
        return [
            Case(batch, float(audio_s), threads)
            for batch in self.batches
            for audio_s in self.audio_s
            for threads in self.threads
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a mapping.

        Raises:
            InputError: a key is unknown or a value impossible.
        """
        if not isinstance(value, Mapping):
            raise InputError("A benchmark must be a JSON object.")
        if unknown := sorted(set(value) - {item.name for item in fields(cls)}):
            raise InputError(f"The benchmark has the unknown key {unknown[0]!r}; remove it.")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return cls(**values)
