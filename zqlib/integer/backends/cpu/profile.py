"""Time and arithmetic of every job of a run: what a roofline is drawn from."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zqlib.integer.backends.cpu import arguments as c
from zqlib.integer.backends.cpu.executor import Executor
from zqlib.integer.backends.cpu.library import library
from zqlib.integer.backends.cpu.steps import Extent
from zqlib.integer.backends.fusion import Job
from zqlib.integer.operators import Attention, Conv1d, Conv2d

__all__ = ["JobCost", "kind_of", "operations", "profile"]


@dataclass(frozen=True)
class JobCost:
    """What a job costs.

    Attributes:
        name: of its operator.
        kind: of its operator, with what the kernels distinguish.
        operations: multiplications and additions of its 8-bit products.
        seconds: of the fastest repetition.
    """

    name: str
    kind: str
    operations: int
    seconds: float

    @property
    def gop_per_s(self) -> float:
        """10^9 operations per second."""
        return self.operations / self.seconds / 1e9


def profile(
    executor: Executor,
    features: Tensor,
    lengths: Tensor,
    repeats: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> list[JobCost]:
    """Run a batch job by job.

    Args:
        executor: of the program.
        features, lengths: as for `Executor.run`.
        repeats: of the whole run.
        clock: seconds; `time.process_time` on a machine that does other work too.

    Returns:
        The cost of every job, in order. The threads of a job begin and end with it here, so the sum
        is more than a run takes.
    """
    executor.run(features, lengths)
    plan = executor.plans[Extent(features.shape[0], features.shape[2])]
    seconds = [float("inf")] * len(executor.jobs)
    for _ in range(repeats):
        executor.run(features, lengths)  # the tensors of a real run, and its caches
        for index in range(len(executor.jobs)):
            step = ctypes.addressof(plan.steps) + index * ctypes.sizeof(c.Step)
            start = clock()
            library().run(executor.instruction_set, step, 1, executor.threads)
            seconds[index] = min(seconds[index], clock() - start)
    return [
        JobCost(job.operator.name, kind_of(job), operations(job, plan.extents[job.output]), spent)
        for job, spent in zip(executor.jobs, seconds, strict=True)
    ]


def operations(job: Job, output: Extent) -> int:
    """Twice the products of 8-bit integers that define a job's output, padding included."""
    frames = output.batch * output.frames
    match job.operator:
        case Conv1d() as conv:
            return 2 * conv.weight.numel() * frames
        case Conv2d() as conv:
            return 2 * conv.weight.numel() * conv.reduced(conv.bands) * frames
        case Attention() as attention:
            # by content, by distance, and of the values
            return 2 * 3 * attention.content_bias.shape[0] * output.frames * frames
        case _:
            return 0


def kind_of(job: Job) -> str:
    """The kind of a job's operator, with what the kernels distinguish."""
    name = type(job.operator).__name__
    match job.operator:
        case Conv1d() as conv if conv.groups > 1:
            return f"{name} depthwise"
        case Conv1d() as conv:
            return f"{name} pointwise" if conv.weight.shape[2] == 1 else f"{name} dense"
    return name
