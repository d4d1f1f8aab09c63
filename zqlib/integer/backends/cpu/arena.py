"""Places for all tensors of a run in one block of memory, planned from who lives when."""

from collections.abc import Collection, Mapping, Sequence

from zqlib.integer.backends.fusion import Job

__all__ = ["ALIGNMENT", "SLACK", "place"]

ALIGNMENT = 64
SLACK = 256
"""Bytes that a kernel may read beyond the end of a tensor."""


def place(
    jobs: Sequence[Job],
    sizes: Mapping[str, int],
    scratch: Sequence[int],
    first: str,
    kept: Collection[str],
) -> tuple[dict[str, int], list[int], int]:
    """Give every tensor the lowest place that is free from its job to the last that reads it.

    Args:
        jobs: in order of execution.
        sizes: bytes of every tensor.
        scratch: bytes that each job needs while it runs.
        first: the tensor that is there before the first job.
        kept: those that are read after the last job.

    Returns:
        The offset of every tensor, the offset of every job's scratch memory, and the total size.
    """
    last_use = {name: index for index, job in enumerate(jobs) for name in job.reads}
    last_use.update({name: len(jobs) for name in kept})
    live: dict[str, range] = {first: range(sizes[first] + SLACK)}
    offsets, scratch_offsets, total = {first: 0}, [], sizes[first] + SLACK
    for index, job in enumerate(jobs):
        own = _lowest(live.values(), sizes[job.output] + SLACK)
        live[job.output], offsets[job.output] = own, own.start
        extra = _lowest(live.values(), scratch[index])
        scratch_offsets.append(extra.start)
        total = max(total, own.stop, extra.stop)
        live = {name: at for name, at in live.items() if last_use.get(name, -1) > index}
    return offsets, scratch_offsets, total


def _lowest(taken: Collection[range], size: int) -> range:
    """The lowest aligned range of a size that touches no other."""
    start = 0
    for other in sorted(taken, key=lambda r: r.start):
        if start + size <= other.start:
            break
        start = max(start, -(-other.stop // ALIGNMENT) * ALIGNMENT)
    return range(start, start + size)
