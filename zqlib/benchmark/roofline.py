"""How far the engine `cpu` is from what the machine can do, layer by layer."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zqlib.benchmark import machine
from zqlib.benchmark.layers import Layer, layers_of
from zqlib.integer.backends.cpu import Executor
from zqlib.integer.backends.cpu.profile import profile
from zqlib.quantized_model import load_quantized

__all__ = ["KindSummary", "LayerTime", "Rates", "floor_us", "layer_times", "summarise_kinds"]

_REPEATS = 20


class Rates(Protocol):
    """What bounds a layer, of a processor or a GPU."""

    @property
    def int8(self) -> float:
        """10^9 multiplications and additions of 8-bit products per second."""

    @property
    def copy_gb_per_s(self) -> float:
        """10^9 bytes read and written per second."""


@dataclass(frozen=True)
class LayerTime:
    """A layer and the microseconds of its fastest run."""

    layer: Layer
    us: float

    @property
    def gop_per_s(self) -> float:
        """10^9 operations per second."""
        return self.layer.operations / self.us / 1e3


@dataclass(frozen=True)
class KindSummary:
    """All layers of one kind together.

    Attributes:
        kind: of the layers.
        layers: how many.
        ms: that they take.
        floor_ms: that they would take at the machine's peak, see `floor_us`.
        gop_per_s: 10^9 operations per second.
        peak_pct: the same as a share of the peak of int8 products.
    """

    kind: str
    layers: int
    ms: float
    floor_ms: float
    gop_per_s: float
    peak_pct: float


def floor_us(layer: Layer, peak: Rates) -> float:
    """The longer of the time for its operations at the int8 peak and for its bytes in a copy."""
    return max(layer.operations / peak.int8, layer.bytes / peak.copy_gb_per_s) / 1e3


def layer_times(program: Path, features: Tensor, lengths: Tensor, threads: int) -> list[LayerTime]:
    """Time every layer in a process of its own, bound to processors as the engines are.

    Args:
        program: a `.zq` file.
        features, lengths: (batch, n_mels, frames) float32 and (batch,) int64.
        threads: that share each layer.

    Raises:
        InputError: a bad file, or there are fewer processors than threads.
    """
    cpus = machine.choose_cpus(threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        arrays = features.numpy(), lengths.numpy()
        return pool.submit(_layer_times, program, *arrays, cpus).result()


def _layer_times(
    path: Path, features: NDArray[np.float32], lengths: NDArray[np.int64], cpus: Sequence[int]
) -> list[LayerTime]:
    machine.bind(cpus)
    torch.set_num_threads(len(cpus))
    model = load_quantized(path)
    quantized = model.quantize_features(torch.from_numpy(features))
    executor = Executor(model.program, len(cpus))
    costs = profile(executor, quantized, torch.from_numpy(lengths), _REPEATS)
    layers = layers_of(model.program, features.shape[0], features.shape[2])
    return [LayerTime(layer, 1e6 * c.seconds) for layer, c in zip(layers, costs, strict=True)]


def summarise_kinds(times: Sequence[LayerTime], peak: Rates) -> list[KindSummary]:
    """By kind of layer, the one that loses most against its floor first."""
    kinds = dict.fromkeys(time.layer.kind for time in times)
    summaries = []
    for kind in kinds:
        same = [time for time in times if time.layer.kind == kind]
        us = sum(time.us for time in same)
        gop_per_s = sum(time.layer.operations for time in same) / us / 1e3
        summaries.append(
            KindSummary(
                kind=kind,
                layers=len(same),
                ms=us / 1e3,
                floor_ms=sum(floor_us(time.layer, peak) for time in same) / 1e3,
                gop_per_s=gop_per_s,
                peak_pct=100 * gop_per_s / peak.int8,
            )
        )
    return sorted(summaries, key=lambda summary: summary.floor_ms - summary.ms)
