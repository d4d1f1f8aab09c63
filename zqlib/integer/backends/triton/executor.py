"""Runs a program on Triton's kernels."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from zqlib.errors import InputError
from zqlib.integer.backends.fusion import Job, fuse, split_constant
from zqlib.integer.backends.lengths import rows_of_lengths
from zqlib.integer.batch import check_input, output_lengths
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.program import Program
from zqlib.integer.reference import ProgramOutput

__all__ = ["Executor", "find_device", "record"]

_MOST_PLANS = 16  # kept for shapes that come again
T = TypeVar("T")


@dataclass(frozen=True)
class _Plan:
    """What is kept for a shape of a batch, on the device.

    Attributes:
        features: (batch, frames, channels), filled for each run.
        lengths: (rows, batch) int64: the valid frames of the tensors of a row, filled for each run.
        constant: tensors that depend on the shape alone, by name.
        launch: computes what a job writes, among the tensors by name that it is given.
        compute: makes logits (batch, frames', classes) and tokens (batch, frames', 1) of these.
    """

    features: Tensor
    lengths: Tensor
    constant: dict[str, Tensor]
    launch: Callable[[Job, dict[str, Tensor]], None]
    compute: Callable[[], tuple[Tensor, Tensor]]


class Executor:
    """A program, its constants on the GPU, and a recorded run for each shape of a batch.

    Args:
        program: the program.

    Raises:
        InputError: triton is not installed, or there is neither a GPU nor TRITON_INTERPRET=1.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.device = program, find_device()
        from zqlib.integer.backends.triton.launches import Launches  # imports triton

        self._once, self.jobs = split_constant(fuse(program))
        self._launches = Launches(program, self.device, _processors(self.device))
        self._rows, self._changes = rows_of_lengths(program)
        self.plans: dict[tuple[int, ...], _Plan] = {}
        self._lock = Lock()

    def run(self, features: Tensor, lengths: Tensor) -> ProgramOutput:
        """Execute the program on a batch; see `zqlib.integer.reference.run`.

        The features may be in main memory or on the executor's device; tokens and logits are on
        the device, and whoever needs them elsewhere copies them.
        """
        check_input(self.program.tensors[self.program.input], features, lengths)
        with self._lock:
            extents = self._extents(lengths, features.shape[2])
            valid = extents[:, :-1]
            plan = self.plans.get(tuple(features.shape))
            if plan is None:
                plan = self._plan(features, valid, extents[:, -1].tolist())
            plan.features.copy_(features.transpose(1, 2))
            plan.lengths.copy_(valid)
            logits, tokens = (tensor.clone() for tensor in plan.compute())
            return ProgramOutput(
                tokens[:, :, 0], logits.transpose(1, 2), valid[self._rows[self.program.logits]]
            )

    def _extents(self, lengths: Tensor, frames: int) -> Tensor:
        """(rows, batch + 1) int64: valid frames of a row's tensors, and how many they hold in all.

        Raises:
            InputError: an utterance is too short for a convolution.
        """
        extents = np.empty((1 + len(self._changes), len(lengths) + 1), np.int64)
        extents[0] = *lengths.tolist(), frames
        for operator, source, target in self._changes:
            if isinstance(operator, Conv1d | Conv2d):
                extents[target] = output_lengths(operator, extents[source])
            else:  # positions
                extents[target] = 2 * extents[source, -1] - 1
        return torch.from_numpy(extents)

    def _plan(self, features: Tensor, valid: Tensor, frames: Sequence[int]) -> _Plan:
        batch, channels, most = features.shape
        x = torch.zeros(batch, most, channels, dtype=features.dtype, device=self.device)
        lengths = valid.to(self.device, copy=True)
        constant: dict[str, Tensor] = {}

        def launch(job: Job, values: dict[str, Tensor]) -> None:
            row = lengths[self._rows[job.operator.reads[0]]]
            held = frames[self._rows[job.output]]
            values[job.output] = self._launches.launch(job, values, row, held)

        def compute() -> tuple[Tensor, Tensor]:
            values = constant | {self.program.input: x}
            readers = Counter(name for job in self.jobs for name in job.reads)
            readers.update([self.program.logits, self.program.tokens])
            for job in self.jobs:
                launch(job, values)
                readers.subtract(job.reads)
                for name in job.reads:  # free a tensor as soon as nothing reads it any more
                    if not readers[name]:
                        values.pop(name, None)
            return values[self.program.logits], values[self.program.tokens]

        values = {self.program.input: x}
        for job in self._once:
            launch(job, values)
        constant |= {job.output: values[job.output] for job in self._once}
        recorded = compute if self.device.type == "cpu" else record(compute)
        if len(self.plans) == _MOST_PLANS:
            del self.plans[next(iter(self.plans))]
        plan = self.plans[tuple(features.shape)] = _Plan(x, lengths, constant, launch, recorded)
        return plan


def find_device() -> torch.device:
    """The GPU, or the CPU where TRITON_INTERPRET=1 asks for Triton's interpreter.

    Raises:
        InputError: triton is not installed, or there is neither a GPU nor TRITON_INTERPRET=1.
    """
    if find_spec("triton") is None:
        raise InputError(
            "The engine triton needs the package triton, which is not installed; "
            "install it with pip install 'zqlib[triton]'."
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    # below 8.0 (Turing and older) Triton has no product of bytes
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        return torch.device("cuda")
    raise InputError(
        "The engine triton needs an NVIDIA GPU of compute capability 8.0 or higher and a torch "
        "built for CUDA, and torch sees none; use the engine cpu, or set TRITON_INTERPRET=1 to let "
        "Triton's interpreter run it slowly."
    )


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def record(compute: Callable[[], T]) -> Callable[[], T]:
    """The launches of `compute` as a CUDA graph; all its tensors keep their places."""
    compute()  # compiles the kernels, which must not happen while recording
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()

    return partial(_replay, graph, outputs, compute)


def _replay(graph: torch.cuda.CUDAGraph, outputs: T, owner: object) -> T:
    """`owner` holds what the launches read; freed, its memory would be given to others."""
    graph.replay()
    return outputs
