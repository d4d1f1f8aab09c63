"""How far the engine `triton` is from what its GPU can do: layers, and single products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zqlib.benchmark.layers import layers_of
from zqlib.benchmark.roofline import LayerTime
from zqlib.integer.backends.triton.executor import Executor
from zqlib.integer.backends.triton.profile import profile, recorded_us
from zqlib.integer.operators import Conv1d

__all__ = ["layer_times", "products"]

_MULTIPLE = 8  # of the rows of a product that `torch._int_mm` takes


def layer_times(executor: Executor, features: Tensor, lengths: Tensor) -> list[LayerTime]:
    """Time every layer of a program; features and lengths as for `Executor.run`."""
    layers = layers_of(executor.program, features.shape[0], features.shape[2])
    times = profile(executor, features, lengths)
    return [LayerTime(layer, us) for layer, us in zip(layers, times, strict=True)]


def products(executor: Executor, times: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """Pointwise convolutions, one of each shape, beside torch's products of the same matrices.

    Ours requantizes its sums and writes bytes, and adds a residual where there is one;
    `torch._int_mm` leaves int32.

    Args:
        executor: of a program.
        times: of its layers.

    Returns:
        JSON-able rows: `rows`, `inputs`, `outputs` of the matrices, and microseconds: `triton_us`,
        `int_mm_us` (int8 to int32), `float16_us`.
    """
    found: dict[tuple[int, int, int], float] = {}
    for job, time in zip(executor.jobs, times, strict=True):
        conv = job.operator
        if isinstance(conv, Conv1d) and conv.groups == conv.weight.shape[2] == 1:
            outputs, inputs, _ = conv.weight.shape
            shape = time.layer.operations // (2 * inputs * outputs), inputs, outputs
            found[shape] = min(time.us, found.get(shape, time.us))
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
