"""An integer program with what surrounds it: front-end, labels, and where it came from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zqlib.audio import MelConfig, MelFrontEnd
from zqlib.devices import device_of
from zqlib.errors import InputError
from zqlib.integer import reference
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.packing import stored_bits
from zqlib.integer.program import Program
from zqlib.integer.storage import load_program, save_program
from zqlib.models import CTCModel
from zqlib.quantization.lower import lower
from zqlib.quantization.mixed_precision import bits_by_layer
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme

__all__ = ["QuantizedModel", "frame_agreement_pct", "load_quantized", "quantize", "round_features",
           "weight_widths"]  # fmt: skip


@dataclass(frozen=True)
class QuantizedModel:
    """What a `.zq` file holds.

    Attributes:
        name, family: of the float model.
        program: the integer program.
        front_end: float mel front-end, as the float model's.
        input_scale: real value of one step of the quantized features. It belongs to the
            front-end: the program itself holds no real number.
        labels: the text of each class; the blank is the class after the last label.
        scheme: how it was quantized; with a budget, and the bits of every layer that it led to.
        calibration: what its ranges come from (`synthetic`, `noise`, `real`) and the details.
    """

    name: str
    family: str
    program: Program
    front_end: MelFrontEnd
    input_scale: float
    labels: tuple[str, ...]
    scheme: QuantScheme
    calibration: dict[str, Any]

    def quantize_features(self, features: Tensor) -> Tensor:
        """See `round_features`."""
        return round_features(self.program, self.input_scale, features)

    def save(self, path: Path) -> None:
        """Write a `.zq` file, atomically."""
        metadata = {
            "name": self.name,
            "family": self.family,
            "mel": asdict(self.front_end.config),
            "input_scale": self.input_scale,
            "labels": list(self.labels),
            "scheme": self.scheme.to_json(),
            "calibration": self.calibration,
        }
        save_program(path, self.program, metadata, {"mel_filters": self.front_end.filters})


def round_features(program: Program, input_scale: float, features: Tensor) -> Tensor:
    """Round features to a program's input type; the last float operation.

    Args:
        program: what will read them.
        input_scale: real value of one step.
        features: float32 of any shape, in main memory or on a GPU.

    Returns:
        int8 of the same shape, in the same place: round(x / scale), half to even, clamped.
    """
    kind = program.tensors[program.input]
    if features.is_cuda:  # by a tensor: torch multiplies by the inverse of a number there
        scale = torch.tensor(input_scale, dtype=torch.float32, device=features.device)
        return (features / scale).round().clamp(kind.low, kind.high).to(kind.dtype)
    # In numpy, on one thread: those of torch would go on spinning beside the kernels' own.
    steps = np.rint(features.numpy() / np.float32(input_scale)).clip(kind.low, kind.high)
    return torch.from_numpy(steps.astype(str(kind.dtype).removeprefix("torch.")))


def frame_agreement_pct(
    model: CTCModel,
    program: Program,
    input_scale: float,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> float:
    """Share of frames whose token is the float model's: what can be known without speech.

    Args:
        model: the float model.
        program, input_scale: made of it.
        batches: features (batch, n_mels, frames) float32 and lengths (batch,) int64.
    """
    same, frames, device = 0, 0, device_of(model.network)
    for features, lengths in batches:
        with torch.no_grad():
            log_probs, _ = model.network(features.to(device), lengths.to(device))
        expected = log_probs.argmax(-1).cpu()
        output = reference.run(program, round_features(program, input_scale, features), lengths)
        valid = torch.arange(expected.shape[1]) < output.lengths[:, None]
        same += int((valid & (output.tokens == expected)).sum())
        frames += int(valid.sum())
    return 100 * same / frames


def weight_widths(program: Program) -> tuple[float, list[tuple[int, int, int, int]]]:
    """What widths a program's weights have.

    Returns:
        Bits of a weight in its file on average, its share of a sub-scale among them; and of every
        width in use: bits, layers, depthwise ones among them, weights.
    """
    layers = [o for o in program.operators if isinstance(o, Conv1d | Conv2d)]
    rows = []
    for bits in sorted({layer.weight_bits for layer in layers}):
        same = [layer for layer in layers if layer.weight_bits == bits]
        depthwise = [layer for layer in same if isinstance(layer, Conv1d) and layer.groups > 1]
        weights = sum(layer.weight.numel() for layer in same)
        rows.append((bits, len(same), len(depthwise), weights))
    stored = sum(stored_bits(o.weight, o.weight_bits, o.group_size) for o in layers)
    return stored / sum(layer.weight.numel() for layer in layers), rows


def load_quantized(path: Path, lazy: bool = False) -> QuantizedModel:
    """Read a `.zq` file.

    Args:
        path: the file.
        lazy: keep no weights in memory, for an engine that keeps them in a form of its own.

    Raises:
        InputError: the file is not a complete, unaltered program (see `load_program`), or lacks a
            sound description of its front-end or labels.
    """
    program, metadata, extra = load_program(path, lazy)
    try:
        model = QuantizedModel(
            name=metadata["name"],
            family=metadata["family"],
            program=program,
            front_end=MelFrontEnd(MelConfig(**metadata["mel"]), extra["mel_filters"]),
            input_scale=float(metadata["input_scale"]),
            labels=tuple(metadata["labels"]),
            scheme=QuantScheme.from_json(metadata["scheme"]),
            calibration=dict(metadata["calibration"]),
        )
        _check(model)
        return model
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(
            f"{path} lacks a sound description of its model ({error!r}); make it again with "
            "`zq quantize`."
        ) from error


def _check(model: QuantizedModel) -> None:
    """Refuse a description that does not fit the program."""
    tensors, mel = model.program.tensors, model.front_end.config
    if not all(isinstance(text, str) for text in (model.name, model.family, *model.labels)):
        raise ValueError("a name or a label is not text")
    if len(model.labels) + 1 != tensors[model.program.logits].channels:
        raise ValueError("the labels do not fit the program's classes")
    if mel.n_mels != tensors[model.program.input].channels:
        raise ValueError("the mel bands do not fit the program's input")
    filters = model.front_end.filters
    if filters.shape != (mel.n_mels, mel.n_fft // 2 + 1) or filters.dtype != torch.float32:
        raise ValueError("the mel filters do not fit the front-end")
    if not (0 < model.input_scale < float("inf") and torch.isfinite(filters).all()):
        raise ValueError("a real number is not finite")


def quantize(
    model: CTCModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    calibration: dict[str, Any],
    progress: bool = False,
) -> QuantizedModel:
    """Fold, recentre, equalize, calibrate, round the weights of and lower a model.

    Args:
        model: the float model.
        batches: calibration features (batch, n_mels, frames) float32 and lengths (batch,) int64.
        scheme: bits and methods.
        calibration: a JSON-able description of where `batches` come from, with a key `kind`.
        progress: show a bar where rounding the weights takes long.

    Raises:
        InputError: calibration saw only zeros somewhere.
        LoweringError: an accumulator could overflow.
    """
    graph, scales = prepare(model.network, batches, scheme, progress=progress)
    if scheme.weight_budget is not None:  # what came of it, to be had again without the search
        scheme = replace(scheme, layer_bits=bits_by_layer(graph))
    return QuantizedModel(
        name=model.name,
        family=model.family,
        program=lower(graph, scales, scheme),
        front_end=model.front_end,
        input_scale=scales[graph.input],
        labels=model.labels,
        scheme=scheme,
        calibration=calibration,
    )
