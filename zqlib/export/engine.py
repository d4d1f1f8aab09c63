"""What is known of a TensorRT engine without TensorRT: its shapes, its name and its record."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from zqlib.errors import InputError
from zqlib.files import read_json

__all__ = [
    "EngineRecord",
    "Precision",
    "Profile",
    "Range",
    "Shape",
    "Shapes",
    "parse_range",
    "record_path",
]

Precision = Literal["int8", "fp16", "fp32"]
Range = tuple[int, int, int]
"""Least, usual and greatest size of an axis; the engine is tuned for the usual one."""
Shape = tuple[int, ...]
Shapes = dict[str, list[Shape]]
"""Least, usual and greatest shape by input."""


@dataclass(frozen=True)
class Profile:
    """Sizes that an engine accepts: its optimization profile.

    Attributes:
        batch: utterances that run together.
        frames: of features, padding included; 100 are a second.
    """

    batch: Range = (1, 1, 8)
    frames: Range = (16, 1000, 3000)

    def shapes(self, mels: int) -> Shapes:
        """Of the inputs of a model that reads `mels` bands."""
        pairs = list(zip(self.batch, self.frames, strict=True))
        return {
            "audio_signal": [(batch, mels, frames) for batch, frames in pairs],
            "length": [(batch,) for batch, _ in pairs],
        }


def parse_range(text: str) -> Range:
    """Read `1,1,8`.

    Raises:
        InputError: these are not three growing positive integers.
    """
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if len(sizes) != 3 or not 0 < sizes[0] <= sizes[1] <= sizes[2]:
        raise InputError(f"{text!r} is no range; give least, usual and greatest size, as in 1,1,8.")
    return sizes[0], sizes[1], sizes[2]


@dataclass(frozen=True)
class EngineRecord:
    """What stands in the JSON file beside an engine, which runs on the device it was built on.

    Attributes:
        precision: what was asked for.
        device, compute_capability: of the GPU, such as `Tesla T4` and `7.5`.
        tensorrt, cuda: versions that built it.
        mels: bands of the features.
        batch, frames: ranges of the profile.
        onnx_sha256, engine_sha256: digests of the ONNX model and of the engine.
        layers: number of layers by precision, as the engine inspector tells.
        metadata: of the model, see `zqlib.export.card`.
    """

    precision: Precision
    device: str
    compute_capability: str
    tensorrt: str
    cuda: str
    mels: int
    batch: Range
    frames: Range
    onnx_sha256: str
    engine_sha256: str
    layers: dict[str, int]
    metadata: dict[str, str]

    def path(self, output: Path) -> Path:
        """`output` with precision, device and version before its suffix."""
        device = re.sub(r"\W+", "-", self.device).strip("-").lower()
        capability = self.compute_capability.replace(".", "")
        name = f"{output.stem}.{self.precision}.{device}.sm{capability}.trt{self.tensorrt}"
        return output.with_name(name + output.suffix)

    def to_json(self) -> dict[str, Any]:
        """For `write_json`."""
        return asdict(self)

    @classmethod
    def beside(cls, engine: Path) -> "EngineRecord":
        """Read the record of an engine.

        Raises:
            InputError: it is missing or damaged.
        """
        path = record_path(engine)
        values = read_json(path)
        try:
            record = cls(**values)
            ranges = [parse_range(",".join(map(str, r))) for r in (record.batch, record.frames)]
        except (TypeError, InputError) as error:
            raise InputError(f"{path} is no record of an engine; export the model anew.") from error
        if record.precision not in get_args(Precision):
            raise InputError(f"{path} has the unknown precision {record.precision!r}.")
        return cls(**values | {"batch": ranges[0], "frames": ranges[1]})

    def summary(self) -> str:
        """For the model card."""
        layers = ", ".join(f"{count} {kind}" for kind, count in sorted(self.layers.items()))
        return (
            f"TensorRT {self.tensorrt} engine for {self.device} "
            f"(compute capability {self.compute_capability}, CUDA {self.cuda}), {self.precision}; "
            f"layers by what they multiply or read: {layers}; batch {self.batch}, frames "
            f"{self.frames} (least, usual, greatest)"
        )


def record_path(engine: Path) -> Path:
    """Where the record of an engine is."""
    return engine.with_name(engine.name + ".json")
