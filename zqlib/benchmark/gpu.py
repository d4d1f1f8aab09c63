"""The engines of NVIDIA GPUs: whether they can be timed here, and TensorRT's.

TensorRT's has not been timed yet: its library was at hand nowhere.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor

from zqlib.devices import choose_device
from zqlib.errors import InputError
from zqlib.export.engine import Precision, Profile
from zqlib.export.tensorrt_rules import weighted_nodes
from zqlib.files import user_cache
from zqlib.integer.backends import triton
from zqlib.results import device_name

if TYPE_CHECKING:
    from zqlib.benchmark.engines import Inputs, Tokens

__all__ = ["GPU_ENGINES", "TensorRt", "engine_device", "require_gpu"]

GPU_ENGINES = ("tensorrt", "torch-compile", "torch-cuda", "triton")
_PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "int8": "int8"}


def require_gpu(engine: str) -> None:
    """Check that this machine has what an engine of `GPU_ENGINES` needs.

    Raises:
        InputError: it has not, or Triton's interpreter would run in the GPU's place.
    """
    if engine == "tensorrt":
        from zqlib.export.tensorrt import require_device

        require_device()
    elif engine.startswith("torch"):
        choose_device("cuda")
    elif triton.find_device().type != "cuda":
        raise InputError("Triton's interpreter is nothing to time; unset TRITON_INTERPRET.")


def engine_device(engine: str) -> str:
    """The name of what an engine computes on."""
    return torch.cuda.get_device_name() if engine in GPU_ENGINES else device_name()


class TensorRt:
    """See `zqlib.benchmark.engines.Engine`. Built for one shape; building counts as loading.

    As for the other engines, features and log-probabilities are in main memory, and copying them
    is timed.
    """

    def __init__(self, inputs: "Inputs") -> None:
        from zqlib.export.tensorrt import TensorRTRunner, build_engine

        assert inputs.file
        model = onnx.load(inputs.file)
        batch, _, frames = inputs.features.shape
        profile = Profile((batch, batch, batch), (frames, frames, frames))
        precision = _PRECISIONS[inputs.system.precision]
        built = build_engine(model, precision, profile, user_cache("tensorrt"))
        self.runner = TensorRTRunner(*built)
        # an engine with one of them in float is refused as an INT8 engine
        self.kind = "integer" if precision == "int8" else "float"
        self.count = len(weighted_nodes(model))
        self.features = torch.from_numpy(inputs.features)
        self.lengths = torch.from_numpy(inputs.lengths)

    def run(self) -> Tensor:
        """See `Engine`; the copy to main memory waits for the GPU."""
        return self.runner(self.features, self.lengths)[0].cpu()

    def tokens(self, result: Any) -> "Tokens":
        """See `Engine`."""
        return np.asarray(result.argmax(-1))

    def layers(self) -> dict[str, int]:
        """See `Engine`."""
        return {"integer": 0, "float": 0, self.kind: self.count}
