"""Places in the arena, and which operators become one job."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import BLOCKS, lowered, reproducible

from zqlib.integer.backends.cpu.arena import ALIGNMENT, SLACK, place
from zqlib.integer.backends.fusion import Job, fuse
from zqlib.integer.operators import Conv1d, Requantize

PROGRAMS = {topology: lowered(topology)[0] for topology in BLOCKS}


def lifetimes(jobs: Sequence[Job], first: str, kept: Sequence[str]) -> dict[str, range]:
    """From the job that writes a tensor to the last that reads it."""
    start = {first: -1} | {job.output: index for index, job in enumerate(jobs)}
    end = dict(start)
    for index, job in enumerate(jobs):
        end |= dict.fromkeys(job.reads, index)
    end |= dict.fromkeys(kept, len(jobs))
    return {name: range(start[name], end[name] + 1) for name in start}


@reproducible
@given(
    topology=st.sampled_from(sorted(BLOCKS)),
    size=st.lists(st.integers(1, 5000), min_size=60, max_size=60),
    extra=st.lists(st.integers(0, 3000), min_size=60, max_size=60),
)
def test_what_lives_together_does_not_overlap(
    topology: str, size: list[int], extra: list[int]
) -> None:
    program = PROGRAMS[topology]
    jobs = fuse(program)
    kept = (program.logits, program.tokens)
    alive = lifetimes(jobs, program.input, kept)
    sizes = dict(zip(alive, size, strict=False))
    scratch = extra[: len(jobs)]
    offsets, scratch_offsets, total = place(jobs, sizes, scratch, program.input, kept)
    blocks = [(alive[n], range(offsets[n], offsets[n] + sizes[n] + SLACK)) for n in alive]
    blocks += [
        (range(index, index + 1), range(start, start + scratch[index]))
        for index, start in enumerate(scratch_offsets)
        if scratch[index]
    ]
    for index, (time, space) in enumerate(blocks):
        assert space.start % ALIGNMENT == 0 and space.stop <= total
        for other_time, other_space in blocks[:index]:
            apart_in_time = time.stop <= other_time.start or other_time.stop <= time.start
            apart_in_space = space.stop <= other_space.start or other_space.stop <= space.start
            assert apart_in_time or apart_in_space


@pytest.mark.parametrize("topology", BLOCKS)
def test_places_are_used_again(topology: str) -> None:
    program = PROGRAMS[topology]
    jobs = fuse(program)
    sizes = dict.fromkeys([program.input, *(job.output for job in jobs)], 10000)
    total = place(jobs, sizes, [0] * len(jobs), program.input, (program.logits, program.tokens))[2]
    assert total < 0.6 * sum(sizes.values())


@pytest.mark.parametrize("topology", BLOCKS)
def test_every_convolution_takes_its_requantization_along(topology: str) -> None:
    program = PROGRAMS[topology]
    jobs = fuse(program)
    written = {program.input}
    for job in jobs:
        assert set(job.reads) <= written
        written.add(job.output)
    done = [o for job in jobs for o in (job.operator, job.requantize) if o]
    assert sorted(o.name for o in done) == sorted(o.name for o in program.operators)
    # all but the accumulators of a residual's other branches, which wait for the last one
    alone = [job for job in jobs if isinstance(job.operator, Requantize)]
    assert alone == []
    bare = [j for j in jobs if isinstance(j.operator, Conv1d) and not j.requantize]
    terms = sum(len(j.requantize.terms) - 1 for j in jobs if j.requantize)
    assert len(bare) <= terms
