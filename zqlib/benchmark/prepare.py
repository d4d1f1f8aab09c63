"""The files that the engines load, and the features that they are fed."""

from collections.abc import Iterable
from pathlib import Path

import onnx
import torch
from torch import Tensor

from zqlib.audio import pad_features
from zqlib.benchmark.plan import Case, System
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_half import to_float16
from zqlib.export.onnx_qdq import export_qdq
from zqlib.files import atomic_output
from zqlib.models import CTCModel
from zqlib.noise import noise_batches
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import lower
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme, preset
from zqlib.quantized_model import QuantizedModel

__all__ = ["case_features", "file_of", "fix_shapes", "write_files"]

_ONNX = ("onnxruntime", "openvino", "tensorrt")
_CALIBRATION = (1, 2, 200)  # batches, utterances, frames of noise


def file_of(system: System) -> str | None:
    """Name of the file that an engine loads; None for torch, which builds the network."""
    if system.engine in _ONNX:
        if system.precision == "int8":
            return "qdq-s8s8.onnx" if system.engine == "tensorrt" else "qdq.onnx"
        return "float16.onnx" if system.precision == "float16" else "float32.onnx"
    return None if system.engine.startswith("torch") else "program.zq"


def write_files(model: CTCModel, systems: Iterable[System], folder: Path) -> None:
    """Write what the systems need: float ONNX, Q/DQ ONNX, an integer program.

    The activation ranges come from noise: no engine's time depends on them.

    Args:
        model: the float model.
        systems: that will run.
        folder: to write into.

    Raises:
        InputError: a file cannot be written.
        LoweringError: an accumulator could overflow.
    """
    wanted = {file_of(system) for system in systems}
    scheme = preset("w8a8")
    if wanted & {"float32.onnx", "float16.onnx"}:
        exact = export_float(fold(model.network, scheme))
        if "float32.onnx" in wanted:
            _save(exact, folder / "float32.onnx")
        if "float16.onnx" in wanted:
            _save(to_float16(exact), folder / "float16.onnx")
    if wanted & {"qdq.onnx", "program.zq"}:
        graph, scales = _prepared(model, scheme)
        if "qdq.onnx" in wanted:
            _save(export_qdq(graph, scales, scheme), folder / "qdq.onnx")
        if "program.zq" in wanted:
            QuantizedModel(
                model.name, model.family, lower(graph, scales, scheme), model.front_end,
                scales[graph.input], model.labels, scheme, {"kind": "noise"},
            ).save(folder / "program.zq")  # fmt: skip
    if "qdq-s8s8.onnx" in wanted:
        scheme = preset("w8a8", unsigned_relu=False, offset_swish=False)
        graph, scales = _prepared(model, scheme)
        _save(export_qdq(graph, scales, scheme), folder / "qdq-s8s8.onnx")


def _prepared(model: CTCModel, scheme: QuantScheme) -> tuple[FloatGraph, dict[str, float]]:
    """A graph and its scales, calibrated on noise."""
    noise = noise_batches(model.front_end.config.n_mels, *_CALIBRATION, seed=0)
    return prepare(model.network, noise, scheme, q_dq=True)


def fix_shapes(source: Path, target: Path, features: Tensor) -> None:
    """Write an ONNX model for features of one shape: what depends on the shape alone is then
    computed when a runtime loads it, as our engine does when it plans.
    """
    model = onnx.load(source)
    sizes = {"batch": features.shape[0], "frames": features.shape[2]}
    for value in model.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    _save(model, target)


def case_features(model: CTCModel, case: Case) -> tuple[Tensor, Tensor]:
    """Features (batch, n_mels, frames) float32 of noise, padded as NeMo does, and lengths."""
    front_end = model.front_end
    samples = round(case.audio_s * front_end.config.sample_rate)
    generator = torch.Generator().manual_seed(0)
    noise = [0.1 * torch.randn(samples, generator=generator) for _ in range(case.batch)]
    return pad_features([front_end(one) for one in noise], front_end.config.pad_to)


def _save(model: onnx.ModelProto, path: Path) -> None:
    with atomic_output(path) as temporary:
        onnx.save(model, temporary)
