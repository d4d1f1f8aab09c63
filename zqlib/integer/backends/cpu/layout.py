"""Which tensors are held with the planes of a band side by side.

The channels of an image are planes times bands, the bands of a plane side by side. A Conv2d
computes the planes of a band together, and the next one reads them so: between the two they stay in
that order, and nothing is turned around. The program does not see it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from zqlib.integer.backends.fusion import Job
from zqlib.integer.operators import Conv1d, Conv2d, Requantize
from zqlib.integer.program import Outline

__all__ = ["Image", "planes_last"]


class Image(NamedTuple):
    """The channels of a tensor as planes and bands."""

    planes: int
    bands: int


def planes_last(program: Outline, jobs: Sequence[Job]) -> dict[str, Image]:
    """The tensors whose planes lie side by side, a requantization's before its function included.

    They are written by a Conv2d whose requantization has no other term and treats all bands of a
    plane alike, and read by nothing but other Conv2d and dense Conv1d.
    """
    found: dict[str, Image] = {}
    for job in jobs:
        conv = job.operator
        if not isinstance(conv, Conv2d) or job.requantize is None or len(job.requantize.terms) > 1:
            continue
        image = Image(conv.weight.shape[0], conv.reduced(conv.bands))
        kept = job.output in (program.logits, program.tokens)
        readers = [other for other in jobs if job.output in other.reads]
        readable = all(_reads_image(other, job.output, image) for other in readers)
        if readable and not kept and _is_uniform(job.requantize, image):
            found |= dict.fromkeys((job.output, job.requantize.output), image)
    return found


def _is_uniform(requantize: Requantize, image: Image) -> bool:
    (term,) = requantize.terms
    return all(
        bool((values.view(image) == values.view(image)[:, :1]).all()) for values in (term.m, term.e)
    )


def _reads_image(job: Job, name: str, image: Image) -> bool:
    if job.reads.count(name) > 1:
        return False
    match job.operator:
        case Conv1d(groups=1) as conv:
            return conv.input == name
        case Conv2d() as conv:
            return conv.input == name and conv.bands == image.bands
        case _:
            return False
