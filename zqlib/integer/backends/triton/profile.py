"""Time of every job of a run on a GPU: what a roofline is drawn from."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zqlib.integer.backends.triton.executor import Executor, record

__all__ = ["profile", "recorded_us"]

_REPLAYS = 5


def profile(executor: Executor, features: Tensor, lengths: Tensor) -> list[float]:
    """Microseconds of every job that runs for each batch, in order, on what a real run gives it.

    Args:
        executor: of the program.
        features, lengths: as for `Executor.run`.
    """
    executor.run(features, lengths)
    plan = executor.plans[tuple(features.shape)]
    values = plan.constant | {executor.program.input: plan.features}
    times = []
    for job in executor.jobs:
        times.append(recorded_us(partial(plan.launch, job, dict(values))))
        plan.launch(job, values)
    return times


def recorded_us(work: Callable[[], object], count: int = 10) -> float:
    """Microseconds of some launches: the fastest of a few replays of a CUDA graph of many."""

    def repeat() -> None:
        for _ in range(count):
            work()

    replay = record(repeat)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    times: list[float] = []
    for _ in range(_REPLAYS):
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / count)
    return min(times)
