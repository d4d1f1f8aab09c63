"""The engines, each loaded from a file and run again and again on the same features.

All of them get float32 features and mask by length. The float engines and Q/DQ end with
log-probabilities, the integer program with integer logits and token ids. What becomes of the
tokens afterwards, and the front-end before, is not part of a run.
"""

import importlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from zqlib import recognition
from zqlib.benchmark.gpu import GPU_ENGINES, TensorRt, require_gpu
from zqlib.benchmark.plan import System
from zqlib.benchmark.sources import Source
from zqlib.benchmark.torch_cuda import TorchCuda
from zqlib.errors import InputError
from zqlib.export.inspection import LayerCount, count_layers
from zqlib.export.openvino import OpenVinoModel
from zqlib.export.runtime import open_session
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.quantized_model import load_quantized

__all__ = ["Engine", "Inputs", "Tokens", "engine_versions", "load_engine"]

Tokens = NDArray[np.integer[Any]]

_EXTRAS = {
    "onnxruntime": "export",
    "openvino": "export",
    "tensorrt": "gpu",
    "torch": "export",
    "torch-compile": "export",
    "torch-cuda": "export",
    "triton": "triton",
}
"""Of this package, by the engine whose library they bring."""
_MODULES = {
    "torch-compile": "torch",
    "torch-cuda": "torch",
    "tensorrt": "zqlib.export.tensorrt",
    "triton": "zqlib.integer.backends.triton.launches",
}
"""Those that import an engine's library where it is not imported by its name."""


class Engine(Protocol):
    """A loaded model with its features."""

    def run(self) -> Any:
        """One inference; what the engine returns, as it returns it."""

    def tokens(self, result: Any) -> Tokens:
        """The best class of each frame in what `run` returned, (batch, frames')."""

    def layers(self) -> dict[str, int]:
        """How many convolutions and linear layers multiply 8-bit integers, and how many floats."""


@dataclass(frozen=True)
class Inputs:
    """What an engine loads.

    Attributes:
        system: which engine.
        source: the model, for torch.
        file: see `zqlib.benchmark.prepare.file_of`; None for torch.
        threads: that compute.
        features, lengths: (batch, n_mels, frames) float32 and (batch,) int64, as numpy arrays.
    """

    system: System
    source: Source
    file: Path | None
    threads: int
    features: NDArray[np.float32]
    lengths: NDArray[np.int64]


def engine_versions(systems: Iterable[System]) -> dict[str, str]:
    """Versions of the libraries that are engines.

    Raises:
        InputError: one is missing, or the GPU that it needs.
    """
    versions = {}
    for name in sorted({system.engine for system in systems} & {*_EXTRAS}):
        try:
            versions[name] = metadata.version(name.partition("-")[0])
        except metadata.PackageNotFoundError as error:
            raise InputError(
                f"The engine {name} is missing; run `pip install 'zqlib[{_EXTRAS[name]}]'` or "
                "leave it out."
            ) from error
        if name in GPU_ENGINES:
            require_gpu(name)
    return versions


def load_engine(inputs: Inputs) -> Callable[[], Engine]:
    """Import an engine's library; what is returned then loads the model."""
    torch.set_num_threads(inputs.threads)
    if inputs.system.engine in _EXTRAS:
        importlib.import_module(_MODULES.get(inputs.system.engine, inputs.system.engine))
    kinds: dict[str, Callable[[Inputs], Engine]] = {
        "torch": _Torch,
        "onnxruntime": _OnnxRuntime,
        "openvino": _OpenVino,
        "tensorrt": TensorRt,
        "torch-compile": TorchCuda,
        "torch-cuda": TorchCuda,
    }
    return partial(kinds.get(inputs.system.engine, _Program), inputs)


def _counts(layers: LayerCount) -> dict[str, int]:
    return {"integer": len(layers.integer), "float": len(layers.float)}


class _Torch:
    """The network as `zq transcribe` runs it: eager, convolutions channels-last."""

    def __init__(self, inputs: Inputs) -> None:
        self.low = inputs.system.precision == "bfloat16"
        network = inputs.source.load().network
        self.network = network.bfloat16() if self.low else network
        self.features = torch.from_numpy(inputs.features)
        self.lengths = torch.from_numpy(inputs.lengths)

    def run(self) -> Tensor:
        """See `Engine`."""
        # autocast: what is computed from nothing, such as positions, is float32
        narrow = torch.autocast("cpu", torch.bfloat16) if self.low else nullcontext()
        with torch.inference_mode(), narrow:
            features = self.features.bfloat16() if self.low else self.features
            log_probs: Tensor = self.network(features, self.lengths)[0]
        return log_probs

    def tokens(self, result: Tensor) -> Tokens:
        """See `Engine`."""
        return result.argmax(-1).numpy()

    def layers(self) -> dict[str, int]:
        """See `Engine`."""
        kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)
        count = sum(isinstance(m, kinds) for m in self.network.modules())
        return {"integer": 0, "float": count}


class _OnnxRuntime:
    def __init__(self, inputs: Inputs) -> None:
        assert inputs.file
        self.file = inputs.file
        self.session = open_session(inputs.file, inputs.threads)
        self.feed = {"audio_signal": inputs.features, "length": inputs.lengths}

    def run(self) -> Any:
        """See `Engine`."""
        return self.session.run(["logprobs"], self.feed)[0]

    def tokens(self, result: Any) -> Tokens:
        """See `Engine`."""
        return np.asarray(result.argmax(-1))

    def layers(self) -> dict[str, int]:
        """See `Engine`."""
        return _counts(count_layers(onnx.load(self.file)))


class _OpenVino:
    """Q/DQ leaves some operators in float; they run at the precision that OpenVINO prefers."""

    def __init__(self, inputs: Inputs) -> None:
        assert inputs.file
        hint = {"float32": "f32", "bfloat16": "bf16"}.get(inputs.system.precision)
        self.model = OpenVinoModel(inputs.file, inputs.threads, hint)
        self.feed: dict[str, np.ndarray] = {
            "audio_signal": inputs.features, "length": inputs.lengths
        }  # fmt: skip

    def run(self) -> Any:
        """See `Engine`."""
        return self.model.run(self.feed)["logprobs"]

    def tokens(self, result: Any) -> Tokens:
        """See `Engine`."""
        return np.asarray(result.argmax(-1))

    def layers(self) -> dict[str, int]:
        """See `Engine`."""
        return _counts(self.model.count_layers())


class _Program:
    """The integer program, on the backend that is named as the engine."""

    def __init__(self, inputs: Inputs) -> None:
        assert inputs.file
        self.recogniser = recognition.IntegerRecogniser(
            load_quantized(inputs.file, lazy=inputs.system.engine == "cpu"),
            cast(recognition.Engine, inputs.system.engine),
            inputs.threads,
        )
        self.features = torch.from_numpy(inputs.features)
        self.lengths = torch.from_numpy(inputs.lengths)

    def run(self) -> Tensor:
        """See `Engine`."""
        return self.recogniser.tokens(self.features, self.lengths)[0]

    def tokens(self, result: Tensor) -> Tokens:
        """See `Engine`."""
        return result.numpy()

    def layers(self) -> dict[str, int]:
        """See `Engine`."""
        operators = self.recogniser.model.program.operators
        count = sum(isinstance(o, Conv1d | Conv2d) for o in operators)
        return {"integer": count, "float": 0}
