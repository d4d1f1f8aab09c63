"""How far the engine `triton` is from what its GPU can do: layers, and single products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zqlib.benchmark.gpu_peak import GpuPeak
from zqlib.benchmark.layers import layers_of
from zqlib.integer.backends.triton.executor import Executor
from zqlib.integer.backends.triton.profile import profile, recorded_us
from zqlib.integer.operators import Conv1d

__all__ = ["kinds_of_layers", "products"]

_MULTIPLE = 8  # of the rows of a product that `torch._int_mm` takes


def kinds_of_layers(
    executor: Executor, features: Tensor, lengths: Tensor, peak: GpuPeak
) -> list[dict[str, Any]]:
    """All layers of a kind together, the kind that loses most first.

    Args:
        executor: of a program.
        features, lengths: quantized, as for `Executor.run`.
        peak: of the GPU.

    Returns:
        JSON-able rows: `kind`, `layers`, `ms`, the floor at the peak's rates (`floor_ms`),
        `gop_per_s`, and that as a share of the int8 peak (`peak_pct`).
    """
    layers = layers_of(executor.program, features.shape[0], features.shape[2])
    times = profile(executor, features, lengths)
    rows = []
    for kind in dict.fromkeys(layer.kind for layer in layers):
        same = [pair for pair in zip(layers, times, strict=True) if pair[0].kind == kind]
        us = sum(time for _, time in same)
        gop_per_s = sum(layer.operations for layer, _ in same) / us / 1e3
        rows.append({
            "kind": kind,
            "layers": len(same),
            "ms": us / 1e3,
            "floor_ms": sum(peak.floor_us(la.operations, la.bytes) for la, _ in same) / 1e3,
            "gop_per_s": gop_per_s,
            "peak_pct": 100 * gop_per_s / peak.int8,
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["floor_ms"] - row["ms"])


def products(executor: Executor, features: Tensor, lengths: Tensor) -> list[dict[str, Any]]:
    """Pointwise convolutions, one of each shape, beside torch's products of the same matrices.

    Ours requantizes its sums and writes bytes, and adds a residual where there is one;
    `torch._int_mm` leaves int32.

    Returns:
        JSON-able rows: `rows`, `inputs`, `outputs` of the matrices, and microseconds: `triton_us`,
        `int_mm_us` (int8 to int32), `float16_us`.
    """
    times = profile(executor, features, lengths)
    found: dict[tuple[int, int, int], float] = {}
    layers = layers_of(executor.program, features.shape[0], features.shape[2])
    for job, layer, us in zip(executor.jobs, layers, times, strict=True):
        conv = job.operator
        if isinstance(conv, Conv1d) and conv.groups == conv.weight.shape[2] == 1:
            outputs, inputs, _ = conv.weight.shape
            rows = layer.operations // (2 * inputs * outputs)
            found[rows, inputs, outputs] = min(us, found.get((rows, inputs, outputs), us))
    return [
        {"rows": shape[0], "inputs": shape[1], "outputs": shape[2], "triton_us": us,
         **_of_torch(shape)}
        for shape, us in found.items()
    ]  # fmt: skip


def _of_torch(shape: Sequence[int]) -> dict[str, float | None]:
    rows, inputs, outputs = shape
    size = -(-rows // _MULTIPLE) * _MULTIPLE
    whole = torch.randint(-128, 128, (size, inputs), dtype=torch.int8, device="cuda")
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, device="cuda").t()
    half = torch.randn(size, inputs, device="cuda", dtype=torch.float16)
    half_weight = torch.randn(inputs, outputs, device="cuda", dtype=torch.float16)
    fits = inputs % _MULTIPLE == outputs % _MULTIPLE == 0  # `torch._int_mm` refuses others
    return {
        "int_mm_us": recorded_us(lambda: torch._int_mm(whole, weight)) if fits else None,
        "float16_us": recorded_us(lambda: half @ half_weight),
    }
