"""Arithmetic and memory traffic of every layer of an integer program, for one shape of a batch.

A layer is a job of the backend `cpu`: a convolution with the requantization, residual sum and
function that follow it, as other engines fuse them too.
"""

from dataclasses import dataclass

from zqlib.integer.backends.cpu.profile import kind_of, operations
from zqlib.integer.backends.cpu.steps import Extent, extent_after
from zqlib.integer.backends.fusion import fuse, split_constant
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.program import Program

__all__ = ["Layer", "layers_of"]


@dataclass(frozen=True)
class Layer:
    """What a layer has to do, whatever computes it.

    Attributes:
        name, kind: of its operator, see `zqlib.integer.backends.cpu.profile`.
        operations: multiplications and additions, twice the MACs.
        elements: of weights, of the tensors that it reads and of the one that it writes.
        bytes: the same in the integer program, where a sum may be held in int32.
    """

    name: str
    kind: str
    operations: int
    elements: int
    bytes: int

    @property
    def depthwise(self) -> bool:
        """Whether no operand is shared among its products."""
        return self.kind.endswith("depthwise")


def layers_of(program: Program, batch: int, frames: int) -> list[Layer]:
    """The layers that run for every batch; what depends on its shape alone is left out.

    Args:
        program: the program.
        batch: utterances.
        frames: of the features, padding included.
    """
    extents = {program.input: Extent(batch, frames)}
    for operator in program.operators:
        extents[operator.output] = extent_after(operator, extents[operator.reads[0]])

    def size(name: str) -> int:
        return extents[name].batch * extents[name].frames * program.tensors[name].channels

    _, jobs = split_constant(fuse(program))
    layers = []
    for job in jobs:
        operator = job.operator
        weights = operator.weight.numel() if isinstance(operator, Conv1d | Conv2d) else 0
        moved = {name: size(name) for name in (*job.reads, job.output)}
        held = {name: program.tensors[name].dtype.itemsize for name in moved}
        layers.append(
            Layer(
                operator.name,
                kind_of(job),
                operations(job, extents[job.output]),
                weights + sum(moved.values()),
                weights + sum(held[name] * count for name, count in moved.items()),
            )
        )
    return layers
