"""How long it takes to make a model: steps of the synthesis, and quantization scheme by scheme."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from zqlib.devices import choose_device
from zqlib.models import CTCModel
from zqlib.quantization.scheme import usual_scheme
from zqlib.quantized_model import quantize
from zqlib.synthesis import REDUCED, SynthesisConfig, as_calibration, synthesize

__all__ = ["quantization_times", "synthesis_speeds"]

_SCHEMES = ("w8a8", "w6a6", "w4g16a8", "w4.5g16a8")


def synthesis_speeds(model: CTCModel, device: str, steps: int) -> list[dict[str, Any]]:
    """Steps per second of the synthesis of `zq quantize`, in the ways that there are.

    Args:
        model: the float model; its network is left on the device.
        device: `cpu` or `cuda`.
        steps: that are timed, of each.

    Returns:
        JSON-able rows: `formulation` (`Conv1d` as torch and NeMo have it, for networks of such
        layers alone; `channels-last`, as it is here; and with products in bfloat16), `steps_per_s`.
    """
    model.network.to(choose_device(device))
    rows = []
    if model.family != "conformer":
        with _frames_last():
            rows.append({"formulation": "Conv1d", "steps_per_s": _rate(model, REDUCED, steps)})
    for name, narrow in (("channels-last", False), ("channels-last, bfloat16", True)):
        config = replace(REDUCED, bfloat16=narrow)
        rows.append({"formulation": name, "steps_per_s": _rate(model, config, steps)})
    return rows


def quantization_times(model: CTCModel, device: str) -> list[dict[str, Any]]:
    """Seconds of `zq quantize` for several schemes, from the loaded model to the program.

    Args:
        model: the float model; its network is left on the device.
        device: `cpu` or `cuda`.

    Returns:
        JSON-able rows: `scheme`, `synthesis_s`, `quantization_s`.
    """
    model.network.to(choose_device(device))
    _seconds(model, replace(REDUCED, steps=1))  # what is loaded only once
    synthesis_s = _seconds(model, REDUCED)
    n_mels = model.front_end.config.n_mels
    batches = as_calibration(synthesize(model.network, n_mels, REDUCED, progress=False))
    rows = []
    for name in _SCHEMES:
        start_s = time.perf_counter()
        quantize(model, batches, usual_scheme(name, model.family), {"kind": "synthetic"})
        seconds = time.perf_counter() - start_s
        rows.append({"scheme": name, "synthesis_s": synthesis_s, "quantization_s": seconds})
    return rows


def _rate(model: CTCModel, config: SynthesisConfig, steps: int) -> float:
    """Steps per second, without what a synthesis does once."""
    once, all_steps = (_seconds(model, replace(config, steps=count)) for count in (0, steps))
    return steps / (all_steps - once)


def _seconds(model: CTCModel, config: SynthesisConfig) -> float:
    start_s = time.perf_counter()
    synthesize(model.network, model.front_end.config.n_mels, config, progress=False)
    return time.perf_counter() - start_s


@contextmanager
def _frames_last() -> Iterator[None]:
    """Networks of one-dimensional convolutions in the order of memory in which torch's Conv1d is.

    torch computes a Conv1d as a Conv2d over a single row; the order alone makes the difference.
    """
    before = torch.channels_last
    torch.channels_last = torch.contiguous_format
    try:
        yield
    finally:
        torch.channels_last = before
