"""From a job to the struct that its kernel reads."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from zqlib.errors import InputError
from zqlib.integer.backends.cpu import arguments as c
from zqlib.integer.backends.cpu.constants import Constants, zero_byte
from zqlib.integer.backends.fusion import Job
from zqlib.integer.operators import (
    Argmax,
    Attention,
    Conv1d,
    Conv2d,
    LayerNorm,
    Operator,
    Positions,
    Product,
    Requantize,
    Sigmoid,
    Swish,
)
from zqlib.integer.tensor_type import TensorType

__all__ = ["Extent", "Steps", "extent_after"]


class Extent(NamedTuple):
    """Utterances and frames of a tensor."""

    batch: int
    frames: int


def extent_after(operator: Operator, source: Extent) -> Extent:
    """The extent of an operator's output, from that of the first tensor that it reads.

    Raises:
        InputError: there are more frames than a table of positions has rows.
    """
    match operator:
        case Conv1d():
            span = operator.dilation * (operator.weight.shape[2] - 1) + 1
            frames = (source.frames + 2 * operator.padding - span) // operator.stride + 1
            return Extent(source.batch, frames)
        case Conv2d():
            return Extent(source.batch, operator.reduced(source.frames))
        case Positions():
            most = operator.table.shape[0]
            if source.frames > most:
                raise InputError(
                    f"An utterance has {source.frames} frames at the attention, the program takes "
                    f"at most {most}; cut the recording."
                )
            return Extent(1, 2 * source.frames - 1)
        case _:
            return source


@dataclass(frozen=True)
class Steps:
    """Builds structs for a batch of one shape.

    Attributes:
        constants: of the program.
        extents: of every tensor.
        tensors, lengths: addresses of every tensor and of its int64 lengths.
        scratch: address of every job's scratch memory, by the name of its output.
        terms: arrays of summands that the structs point to.
    """

    constants: Constants
    extents: Mapping[str, Extent]
    tensors: Mapping[str, int]
    lengths: Mapping[str, int]
    scratch: Mapping[str, int]
    terms: list[ctypes.Array[c.Term]] = field(default_factory=list)

    def build(self, job: Job) -> c.Arguments:
        """The struct of a job; it points into the arrays of the constants and into `terms`."""
        operator, output = job.operator, job.output
        batch, frames = self.extents[operator.reads[0]]
        kind = self._kind(operator.reads[0])
        match operator:
            case Conv1d():
                struct = c.Convolution if operator.groups == 1 else c.Depthwise
                return struct(
                    **self._convolution(job),
                    channels=kind.channels,
                    taps=operator.weight.shape[2],
                    dilation=operator.dilation,
                )
            case Conv2d():
                return c.Planar(
                    **self._convolution(job),
                    bands=operator.bands,
                    planes=operator.weight.shape[1],
                    out_bands=operator.reduced(operator.bands),
                    out_planes=operator.weight.shape[0],
                    taps=operator.weight.shape[2],
                    planes_last=operator.input in self.constants.images,
                    out_planes_last=output in self.constants.images,
                )
            case Requantize():
                return c.Requantization(rows=batch * frames, output=self._output(output, operator))
            case LayerNorm():
                target = self._kind(output)
                return c.LayerNorm(
                    x=self.tensors[operator.input],
                    out=self.tensors[output],
                    m=self.constants.address(operator, "m"),
                    e=self.constants.address(operator, "e"),
                    rounding=self.constants.address(operator, "rounding"),
                    rows=batch * frames,
                    channels=kind.channels,
                    eps=operator.constants.eps,
                    x_wide=kind.dtype == torch.int32,
                    x_zero=zero_byte(kind),
                    low=target.low,
                    high=target.high,
                    out_zero=zero_byte(target),
                    out_wide=target.dtype == torch.int32,
                )
            case Sigmoid() | Swish():
                return c.Lookup(
                    x=self.tensors[operator.input],
                    out=self.tensors[output],
                    table=self.constants.address(operator, "table"),
                    elements=batch * frames * kind.channels,
                    wide=kind.dtype == torch.int32,
                    first=kind.low + zero_byte(kind),
                )
            case Product():
                a, b = operator.reads
                return c.Product(
                    a=self.tensors[a],
                    b=self.tensors[b],
                    out=self.tensors[output],
                    elements=batch * frames * kind.channels,
                    a_zero=zero_byte(kind),
                    b_zero=zero_byte(self._kind(b)),
                )
            case Positions():
                return c.Positions(
                    table=self.constants.address(operator, "table"),
                    out=self.tensors[output],
                    frames=frames,
                    channels=self._kind(output).channels,
                )
            case Attention():
                return self._attention(operator, batch, frames)
            case Argmax():
                return c.Argmax(
                    x=self.tensors[operator.input],
                    out=self.tensors[output],
                    rows=batch * frames,
                    channels=kind.channels,
                )

    def _kind(self, name: str) -> TensorType:
        return self.constants.program.tensors[name]

    def _convolution(self, job: Job) -> dict[str, Any]:
        conv = job.operator
        assert isinstance(conv, Conv1d | Conv2d)
        batch, frames = self.extents[conv.input]
        return {
            "x": self.tensors[conv.input],
            "weight": self.constants.address(conv, "weight"),
            "bias": self.constants.address(conv, "bias"),
            "lengths": self.lengths[conv.input],
            "scratch": self.scratch[job.output],
            "batch": batch,
            "frames": frames,
            "zero": zero_byte(self._kind(conv.input)),
            "out_frames": self.extents[job.output].frames,
            "stride": conv.stride,
            "padding": conv.padding,
            "output": self._output(job.output, job.requantize, conv.output, job.function),
        }

    def _output(
        self,
        name: str,
        requantize: Requantize | None,
        accumulator: str | None = None,
        function: Sigmoid | Swish | None = None,
    ) -> c.Output:
        """Where a job's results go; `accumulator` is the term that it computes itself."""
        kind = self._kind(requantize.output if requantize else name)
        terms = requantize.terms if requantize else ()
        array = (c.Term * len(terms))()
        for index, term in enumerate(terms):
            assert requantize is not None
            source = self._kind(term.input)
            own = term.input == accumulator
            array[index] = c.Term(
                values=None if own else self.tensors[term.input],
                m=self.constants.address(requantize, f"m{index}"),
                e=self.constants.address(requantize, f"e{index}"),
                wide=source.dtype == torch.int32,
                upper=self.constants.is_upper(requantize, index),
                zero=zero_byte(source),
            )
        self.terms.append(array)
        image = self.constants.images.get(name)
        return c.Output(
            values=self.tensors[name],
            terms=ctypes.addressof(array),
            table=self.constants.address(function, "table") if function else None,
            term_count=len(terms),
            fits_int32=requantize is not None and requantize.name in self.constants.fits_int32,
            channels=image.planes if image else kind.channels,
            low=kind.low,
            high=kind.high,
            zero=zero_byte(kind),
            wide=kind.dtype == torch.int32,
        )

    def _attention(self, attention: Attention, batch: int, frames: int) -> c.Attention:
        reads = ("query", "key", "value", "position")
        dyadic = {
            f"{name}_{letter}": int(part)
            for name in ("content", "distance", "exponent")
            for letter, part in zip("me", getattr(attention, name), strict=True)
        }
        return c.Attention(
            **{role: self.tensors[n] for role, n in zip(reads, attention.reads, strict=True)},
            **{
                name: self.constants.address(attention, name)
                for name in ("content_bias", "distance_bias")
            },
            lengths=self.lengths[attention.reads[0]],
            scratch=self.scratch[attention.output],
            out=self.tensors[attention.output],
            batch=batch,
            frames=frames,
            channels=self._kind(attention.reads[0]).channels,
            heads=attention.heads,
            fits_int32=attention.name in self.constants.fits_int32,
            **dyadic,
        )
