"""What a GPU can do: what it was seen to do, and what its data sheet says."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from zqlib.benchmark.simulate import T4, Machine
from zqlib.integer.backends.triton.profile import recorded_us

__all__ = ["DATA_SHEETS", "GpuPeak", "measure_gpu_peak"]

_SIZE = 8192
_COPIED_BYTES = 1 << 30  # beyond any cache
_LAUNCHES = 1000

DATA_SHEETS = {
    "NVIDIA H200": Machine(
        # dense rates of the SXM version: 67 TFLOP/s float32, 495 TF32, 989 float16 and bfloat16,
        # 1979 TOP/s int8, 4.8 TB/s
        name="NVIDIA H200 (data sheet)",
        matrix_gop_per_s={
            "float32": 67_000, "tf32": 495_000, "float16": 989_000, "bfloat16": 989_000,
            "int8": 1_979_000,
        },
        # without tensor cores: float16 in pairs; half as many units for integers as for floats
        vector_gop_per_s={
            "float32": 67_000, "tf32": 67_000, "float16": 134_000, "bfloat16": 134_000,
            "int8": 33_500,
        },
        bandwidth_gb_per_s=4_800,
        # the assumptions of the simulated T4, which this is to test
        launch_us=T4.launch_us,
        compute_efficiency=T4.compute_efficiency,
        memory_efficiency=T4.memory_efficiency,
    ),
}  # fmt: skip
"""By the name that torch gives to a device."""


@dataclass(frozen=True)
class GpuPeak:
    """What torch reached.

    Attributes:
        float32, tf32, float16, bfloat16, int8: 10^9 multiplications and additions per second of
            8192^3 products of random numbers; int8 is `torch._int_mm`.
        copy_gb_per_s: 10^9 bytes read and written per second by a copy of 1 GiB.
        launch_us: of a kernel that does next to nothing, in a CUDA graph of many.
    """

    float32: float
    tf32: float
    float16: float
    bfloat16: float
    int8: float
    copy_gb_per_s: float
    launch_us: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)


def measure_gpu_peak() -> GpuPeak:
    """Measure on the GPU that torch uses."""
    real = torch.randn(_SIZE, _SIZE, device="cuda")
    whole = torch.randint(-128, 128, (_SIZE, _SIZE), dtype=torch.int8, device="cuda")
    source = torch.randint(0, 256, (_COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    tick = torch.zeros(1, device="cuda")

    def rate(work: Callable[[], object]) -> float:
        return 2 * _SIZE**3 / recorded_us(work, 3) / 1e3

    def product(dtype: torch.dtype, tf32: bool = False) -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        values = real.to(dtype)
        return rate(lambda: values @ values)

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        return GpuPeak(
            float32=product(torch.float32),
            tf32=product(torch.float32, tf32=True),
            float16=product(torch.float16),
            bfloat16=product(torch.bfloat16),
            int8=rate(lambda: torch._int_mm(whole, whole.t())),
            copy_gb_per_s=2 * _COPIED_BYTES / recorded_us(lambda: target.copy_(source)) / 1e3,
            launch_us=recorded_us(lambda: tick.add_(1), _LAUNCHES),
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
