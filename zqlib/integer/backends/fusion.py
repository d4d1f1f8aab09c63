"""Which requantizations and functions a convolution computes on its way out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zqlib.integer.operators import Conv1d, Conv2d, Operator, Positions, Requantize, Sigmoid, Swish
from zqlib.integer.program import Outline

__all__ = ["Job", "fuse", "split_constant"]


@dataclass(frozen=True, eq=False)
class Job:
    """An operator, with the requantization of its accumulator and a function of that, if any."""

    operator: Operator
    requantize: Requantize | None = None
    function: Sigmoid | Swish | None = None

    @property
    def output(self) -> str:
        """Name of the tensor that it writes."""
        return (self.function or self.requantize or self.operator).output

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        if self.requantize is None:
            return self.operator.reads
        others = (name for name in self.requantize.reads if name != self.operator.output)
        return (*self.operator.reads, *others)


def fuse(program: Outline) -> Sequence[Job]:
    """The operators of a program as jobs, in an order of execution.

    A requantization joins the convolution that writes the last of its terms, if nothing else reads
    that accumulator: it is then never stored. So does a function that alone reads the result.
    """
    readers = Counter(name for operator in program.operators for name in operator.reads)
    readers.update([program.logits, program.tokens])
    written = {program.input}
    requantize_of = {
        name: operator
        for operator in program.operators
        if isinstance(operator, Requantize)
        for name in operator.reads
        if readers[name] == 1
    }
    function_of = {
        operator.input: operator
        for operator in program.operators
        if isinstance(operator, Sigmoid | Swish) and readers[operator.input] == 1
    }
    jobs: list[Job] = []
    done: set[str] = set()
    for operator in program.operators:
        if operator.name in done:
            continue
        follower = requantize_of.get(operator.output)
        if isinstance(operator, Conv1d | Conv2d) and follower:
            others = {name for name in follower.reads if name != operator.output}
            if others <= written:
                jobs.append(Job(operator, follower, function_of.get(follower.output)))
                done |= {part.name for part in (follower, jobs[-1].function) if part}
                written.add(jobs[-1].output)
                continue
        written.add(operator.output)
        jobs.append(Job(operator))
    return jobs


def split_constant(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """The jobs whose results depend on the number of frames alone, and the others."""
    constant: list[Job] = []
    others: list[Job] = []
    known: set[str] = set()
    for job in jobs:
        if isinstance(job.operator, Positions) or set(job.reads) <= known:
            constant.append(job)
            known.add(job.output)
        else:
            others.append(job)
    return constant, others
