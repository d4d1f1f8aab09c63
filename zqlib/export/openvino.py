"""OpenVINO, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from zqlib.errors import InputError
from zqlib.export.inspection import LayerCount

__all__ = ["OpenVinoModel"]

_LAYERS = {"Convolution", "GroupConvolution", "FullyConnected"}
_PRODUCTS = {"MatMul", "ScaledDotProductAttention"}


class OpenVinoModel:
    """A compiled model.

    Args:
        model: an ONNX model, float or with Q/DQ, or its file.
        threads: that compute one operator.
        precision: `f32` or `bf16`, of what the model has in float; None for what OpenVINO prefers
            on this processor.

    Raises:
        InputError: OpenVINO is not installed, or it refuses the model.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, threads: int = 1, precision: str | None = "f32"
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise InputError("OpenVINO is missing; run `pip install 'zqlib[export]'`.") from error
        core = openvino.Core()
        # asked for, because a processor with bfloat16 would take that by itself
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        try:
            read = core.read_model(model if isinstance(model, Path) else model.SerializeToString())
            self._compiled: Any = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise InputError(f"OpenVINO refuses the model ({error}).") from error

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, of inputs by name."""
        results = self._compiled(inputs)
        return {output.get_any_name(): value for output, value in results.items()}

    def count_layers(self) -> LayerCount:
        """How the layers of the compiled model run; see `LayerCount`."""
        names: dict[str, list[str]] = {"integer": [], "float": [], "products": []}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            described = node.get_rt_info()
            kind, precision = (
                described[key].astype(str) for key in ("layerType", "runtimePrecision")
            )
            if kind in _LAYERS:
                names["integer" if precision in ("i8", "u8") else "float"].append(
                    node.get_friendly_name()
                )
            elif kind in _PRODUCTS:
                names["products"].append(node.get_friendly_name())
        return LayerCount(tuple(names["integer"]), tuple(names["float"]), tuple(names["products"]))
