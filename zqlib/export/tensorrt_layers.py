"""Which layers of a TensorRT engine compute in INT8, by the report of its engine inspector.

The report is JSON. TensorRT 10 and 11 differ: the type of a tensor stands in `Format/Datatype`, in
words ("... row major Int8 format"), or in `DataType`
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html and
https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zqlib.errors import InputError

__all__ = ["EngineLayer", "engine_layers", "not_int8"]

_TYPES = {
    "int8": "INT8", "half": "FP16", "fp16": "FP16", "float": "FP32", "fp32": "FP32",
    "bf16": "BF16", "bfloat16": "BF16", "int32": "INT32", "int64": "INT64", "bool": "BOOL",
}  # fmt: skip
_ONNX_NAME = re.compile(r"\[ONNX Layer: ([^|\]]+?)\s*[|\]]")
_MULTIPLIES = re.compile(r"conv|gemm|matmul|matrixmultiply", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name, kind: as the inspector gives them.
        precision: of what it multiplies (its weights, else the first input): INT8, FP16, FP32, ...;
            `unknown` where the report does not say.
        nodes: names of the ONNX nodes that were fused into it.
    """

    name: str
    kind: str
    precision: str
    nodes: frozenset[str]

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a matrix product, by its kind."""
        return bool(_MULTIPLIES.search(self.kind))


def engine_layers(report: str) -> list[EngineLayer]:
    """Read the inspector's report on an engine.

    Args:
        report: JSON of `get_engine_information`, of an engine built with detailed profiling
            verbosity, for an execution context with given shapes.

    Raises:
        InputError: the report is no such JSON.
    """
    try:
        layers = json.loads(report)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "The inspector's report is not as documented; compare the versions of TensorRT."
        ) from error
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise InputError(
            "The engine tells only names of its layers; build it with detailed verbosity."
        )
    return [_layer(entry) for entry in layers]


def not_int8(layers: Sequence[EngineLayer], weighted: Iterable[str]) -> dict[str, str]:
    """Convolutions and linear layers that an engine does not, or not provably, run in INT8.

    Args:
        layers: of the engine.
        weighted: names of the ONNX nodes that should (`tensorrt_rules.weighted_nodes`).

    Returns:
        Precision by name of the node; `unknown` where no layer that multiplies names the node.
    """
    failed = {}
    for name in weighted:
        found = {layer.precision for layer in layers if layer.multiplies and name in layer.nodes}
        if found != {"INT8"}:
            failed[name] = "+".join(sorted(found - {"INT8"})) or "unknown"
    return failed


def _layer(entry: dict[str, Any]) -> EngineLayer:
    name = str(entry.get("Name", ""))
    nodes = _ONNX_NAME.findall(entry.get("Metadata") or "") or name.split(" + ")
    kinds = (str(entry.get(key, "")) for key in ("LayerType", "ParameterType"))
    weights = entry.get("Weights")
    inputs = [_type(tensor) for tensor in entry.get("Inputs") or []]
    precision = _type(weights) if weights else next(iter(inputs), "unknown")
    return EngineLayer(name, " ".join(filter(None, kinds)), precision, frozenset(nodes))


def _type(tensor: dict[str, Any]) -> str:
    keys = ("Type", "DataType", "Datatype", "Format/Datatype")
    text = next((str(tensor[key]) for key in keys if key in tensor), "")
    return next((_TYPES[word] for word in re.findall(r"\w+", text.lower()) if word in _TYPES),
                "unknown")  # fmt: skip
