"""What this machine can do at best: products of matrices, and copies."""

import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch

from zqlib.benchmark import machine
from zqlib.benchmark.simulate import Machine
from zqlib.integer.products import int_mm_is_fast

__all__ = ["Peak", "measure_peak"]

_SIZE = 2048
_COPIED_BYTES = 1 << 28  # beyond any cache
_SECONDS = 2.0  # for each figure


@dataclass(frozen=True)
class Peak:
    """The best of a few seconds each, on so many threads.

    Attributes:
        threads: bound to as many processors.
        float32, bfloat16, int8: 10^9 multiplications and additions per second of 2048^3 products
            in torch (oneDNN); float32 also as torch multiplies it unasked, which is with MKL, and
            half as fast on some processors; int8 is `torch._int_mm`. Where torch has only a loop
            for one of the narrower, it follows from float32: without AVX-512, vectors multiply
            widened bfloat16 at that rate; without VNNI those of x86 multiply and add two 16-bit
            integers in the room of a float (VPMADDWD), so at twice that rate.
        copy_gb_per_s: 10^9 bytes read and written per second by a copy of 256 MiB.
    """

    threads: int
    float32: float
    bfloat16: float
    int8: float
    copy_gb_per_s: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)

    def as_machine(self, name: str) -> Machine:
        """Its figures for a simulation: they were reached, so the efficiencies are 1.

        Depthwise convolutions get the rate of float32 products at every precision, because the
        dot-product instructions of the narrower ones have no shared operand to multiply with.
        """
        return Machine(
            name,
            {"float32": self.float32, "bfloat16": self.bfloat16, "int8": self.int8},
            dict.fromkeys(("float32", "bfloat16", "int8"), self.float32),
            self.copy_gb_per_s,
            launch_us=0,
            compute_efficiency=1,
            memory_efficiency=1,
        )


def measure_peak(threads: int, seconds: float = _SECONDS) -> Peak:
    """Measure in a process of its own, bound to processors as the engines are.

    Raises:
        InputError: there are fewer processors than threads.
    """
    cpus = machine.choose_cpus(threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, cpus, seconds).result()


def _measure(cpus: Sequence[int], seconds: float) -> Peak:
    machine.bind(cpus)
    torch.set_num_threads(len(cpus))
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(_SIZE, _SIZE, generator=generator)
    narrow = real.bfloat16()
    whole = torch.randint(-127, 128, (_SIZE, _SIZE), dtype=torch.int8, generator=generator)
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    blocked = real.to_mkldnn()
    product = 2 * _SIZE**3
    float32_s = min(
        _best_s(lambda: real @ real, seconds / 2),
        _best_s(lambda: torch.nn.functional.linear(blocked, blocked), seconds / 2),
    )
    int8_s = bfloat16_s = float32_s
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        bfloat16_s = _best_s(lambda: narrow @ narrow, seconds)
    if int_mm_is_fast():
        int8_s = _best_s(lambda: torch._int_mm(whole, whole), seconds)
    elif platform.machine() == "x86_64":
        int8_s = float32_s / 2
    return Peak(
        threads=len(cpus),
        float32=product / float32_s / 1e9,
        bfloat16=product / bfloat16_s / 1e9,
        int8=product / int8_s / 1e9,
        copy_gb_per_s=2 * _COPIED_BYTES / _best_s(lambda: target.copy_(source), seconds) / 1e9,
    )


def _best_s(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest repetition; one that does not count comes first."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
