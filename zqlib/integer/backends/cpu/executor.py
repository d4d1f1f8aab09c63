"""Runs a program on the compiled kernels."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from zqlib.errors import InputError
from zqlib.integer.backends.cpu import arguments as c
from zqlib.integer.backends.cpu.arena import ALIGNMENT, SLACK, place
from zqlib.integer.backends.cpu.constants import Constants, zero_byte
from zqlib.integer.backends.cpu.library import library
from zqlib.integer.backends.cpu.packing import Array, aligned
from zqlib.integer.backends.cpu.steps import Extent, Steps, extent_after
from zqlib.integer.backends.fusion import fuse, split_constant
from zqlib.integer.backends.lengths import rows_of_lengths
from zqlib.integer.batch import check_input, output_lengths
from zqlib.integer.operators import Conv1d, Conv2d, Operator
from zqlib.integer.program import Program
from zqlib.integer.reference import ProgramOutput

__all__ = ["INSTRUCTION_SETS", "Executor"]

INSTRUCTION_SETS = ("avx512_vnni", "avx_vnni", "avx2", "neon_dot", "portable")
"""Best first."""

_MOST_PLANS = 16  # kept for shapes that come again


@dataclass(frozen=True)
class _Plan:
    """Everything that depends on the shape of a batch.

    Attributes:
        extents: of every tensor.
        offsets: of every tensor in the arena; the constant ones have memory of their own.
        lengths: (rows, batch) int64, filled for each run.
        rows: the row of every tensor; tensors of the same lengths share one.
        changes: the operators that change lengths, with the rows that they read and write.
        once, steps: for the library: what depends on the shape alone, and what runs every time.
        owned: the structs and the memory that they point to.
    """

    extents: dict[str, Extent]
    offsets: dict[str, int]
    lengths: Array
    rows: dict[str, int]
    changes: Sequence[tuple[Operator, int, int]]
    once: ctypes.Array[c.Step]
    steps: ctypes.Array[c.Step]
    owned: tuple[object, ...]


class Executor:
    """A program, its constants packed for this processor, and one arena for its tensors.

    It does not hold on to the weights that it has packed.

    Args:
        program: the program.
        threads: that share the work of every step.
        instruction_set: one of `INSTRUCTION_SETS`; the best of this processor if None.

    Raises:
        InputError: a bad number of threads, an instruction set that this processor lacks, or no
            way to compile the kernels.
    """

    def __init__(
        self, program: Program, threads: int = 1, instruction_set: str | None = None
    ) -> None:
        if not 1 <= threads <= 256:
            raise InputError(f"The engine cpu cannot use {threads} threads; give 1 to 256.")
        kernels = library()
        available = [name for name in INSTRUCTION_SETS if kernels.lanes(name)]
        if instruction_set is not None and instruction_set not in available:
            raise InputError(
                f"This processor does not run {instruction_set!r}; use {' or '.join(available)}."
            )
        self.program, self.threads = program.outline(), threads
        self.instruction_set = instruction_set or available[0]
        jobs = fuse(self.program)
        self.once, self.jobs = split_constant(jobs)
        self._constants = Constants(
            self.program,
            program.operators,
            jobs,
            kernels.lanes(self.instruction_set),
            kernels.panel_width(self.instruction_set),
            kernels.depth(self.instruction_set),
            kernels.offset(self.instruction_set),
        )
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._base = 0
        self.plans: dict[Extent, _Plan] = {}
        self._lock = Lock()

    def run(self, features: Tensor, lengths: Tensor) -> ProgramOutput:
        """Execute the program on a batch; see `zqlib.integer.reference.run`."""
        check_input(self.program.tensors[self.program.input], features, lengths)
        with self._lock:
            plan = self._prepare(features, lengths)
            self._run(plan.steps)
            logits = self._view(plan, self.program.logits).transpose(0, 2, 1)
            tokens = self._view(plan, self.program.tokens)[:, :, 0]
            valid = plan.lengths[plan.rows[self.program.logits]]
            return ProgramOutput(
                *(torch.from_numpy(array.copy(order="K")) for array in (tokens, logits, valid))
            )

    def _prepare(self, features: Tensor, lengths: Tensor) -> _Plan:
        """Plan for the shape if need be, and put the batch into the arena."""
        extent = Extent(features.shape[0], features.shape[2])
        known = self.plans.get(extent)
        plan = known or self._plan(extent)
        plan.lengths[plan.rows[self.program.input]] = lengths.numpy()
        for operator, source_row, target_row in plan.changes:
            if isinstance(operator, Conv1d | Conv2d):
                valid = output_lengths(operator, plan.lengths[source_row])
            else:  # positions
                valid = plan.extents[operator.output].frames
            plan.lengths[target_row] = valid
        if known is None:
            self._run(plan.once)
            if len(self.plans) == _MOST_PLANS:
                del self.plans[next(iter(self.plans))]
            self.plans[extent] = plan
        kind = self.program.tensors[self.program.input]
        target = self._view(plan, self.program.input)
        source = features.numpy().transpose(0, 2, 1)
        if kind.dtype == torch.int8:
            np.bitwise_xor(source.view(np.uint8), np.uint8(zero_byte(kind)), out=target)
        else:
            np.copyto(target, source)
        return plan

    def _plan(self, extent: Extent) -> _Plan:
        program = self.program
        extents = {program.input: extent}
        for operator in program.operators:
            extents[operator.output] = extent_after(operator, extents[operator.reads[0]])
        sizes = {
            name: batch * frames * self._element_bytes(name) * program.tensors[name].channels
            for name, (batch, frames) in extents.items()
        }
        rows, changes = rows_of_lengths(program)
        lengths = np.zeros((1 + len(changes), extent.batch), np.int64)
        starts = {name: lengths[row:].ctypes.data for name, row in rows.items()}
        nowhere = dict.fromkeys([*sizes], 0)
        sketch = Steps(self._constants, extents, nowhere, starts, nowhere)
        scratch = [self._scratch_bytes(sketch.build(job)) for job in self.jobs]
        kept = (program.logits, program.tokens)
        offsets, scratch_offsets, total = place(self.jobs, sizes, scratch, program.input, kept)
        before = [self._scratch_bytes(sketch.build(job)) for job in self.once]
        self._reserve(max([total, *before]))
        constant = {
            job.output: aligned(np.zeros(sizes[job.output] + SLACK, np.uint8)) for job in self.once
        }
        tensors = {name: self._base + offset for name, offset in offsets.items()}
        tensors |= {name: memory.ctypes.data for name, memory in constant.items()}
        places = zip(self.jobs, scratch_offsets, strict=True)
        own = {job.output: self._base + offset for job, offset in places}
        own |= {job.output: self._base for job in self.once}  # nothing else is there yet
        builder = Steps(self._constants, extents, tensors, starts, own)
        structs = [[builder.build(job) for job in jobs] for jobs in (self.once, self.jobs)]
        once, steps = ((c.Step * len(part))(*map(_step, part)) for part in structs)
        owned = (structs, builder, constant)
        return _Plan(extents, offsets, lengths, rows, changes, once, steps, owned)

    def _run(self, steps: ctypes.Array[c.Step]) -> None:
        library().run(self.instruction_set, ctypes.addressof(steps), len(steps), self.threads)

    def _scratch_bytes(self, struct: c.Arguments) -> int:
        step = _step(struct)
        return library().scratch_bytes(self.instruction_set, ctypes.addressof(step), self.threads)

    def _reserve(self, size: int) -> None:
        """Grow the arena; plans that point into the old one are forgotten."""
        if size > len(self._arena) - ALIGNMENT - SLACK:
            self.plans.clear()
            self._arena = torch.zeros(size + ALIGNMENT + SLACK, dtype=torch.uint8)
            self._base = -(-self._arena.data_ptr() // ALIGNMENT) * ALIGNMENT

    def _element_bytes(self, name: str) -> int:
        return 4 if self.program.tensors[name].dtype == torch.int32 else 1

    def _view(self, plan: _Plan, name: str) -> Array:
        """A tensor of the arena: (batch, frames, channels) uint8 or int32.

        For numpy, which works on one thread. Torch's threads go on looking for work for some
        milliseconds after each of its operators, on the processors that the kernels need then.
        """
        start = self._base - self._arena.data_ptr() + plan.offsets[name]
        shape = (*plan.extents[name], self.program.tensors[name].channels)
        size = self._element_bytes(name)
        flat = self._arena.numpy()[start : start + size * int(np.prod(shape))]
        return (flat.view(np.int32) if size == 4 else flat).reshape(shape)


def _step(struct: c.Arguments) -> c.Step:
    return c.Step(c.KINDS.index(type(struct)), ctypes.addressof(struct))
