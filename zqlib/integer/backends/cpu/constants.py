"""What the kernels read of a program besides its tensors, packed once when it is loaded."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np
import torch
from torch import Tensor

from zqlib.integer.backends.cpu.layout import Image, planes_last
from zqlib.integer.backends.cpu.packing import (
    Array,
    aligned,
    pack_bias,
    pack_depthwise,
    pack_panels,
    pad_channels,
    trim_heap,
)
from zqlib.integer.backends.fusion import Job
from zqlib.integer.backends.tables import function_table
from zqlib.integer.operators import (
    Attention,
    Conv1d,
    Conv2d,
    LayerNorm,
    Operator,
    Positions,
    Requantize,
    Sigmoid,
    Swish,
)
from zqlib.integer.program import Outline
from zqlib.integer.rules import accumulator_bound
from zqlib.integer.tensor_type import TensorType

__all__ = ["Constants", "zero_byte"]

_LARGE = 1 << 20  # bytes of a layer after which the heap is trimmed


def zero_byte(kind: TensorType) -> int:
    """The byte that stands for 0 in a tensor of 8 bits; 0 in one of 32."""
    return 128 if kind.dtype == torch.int8 else 0


@dataclass(frozen=True)
class Constants:
    """Arrays of every operator.

    Attributes:
        program: whose they are.
        operators: of the program, with their weights; each is packed before the next is read.
        jobs: of the program.
        lanes, panel_width, depth, offset: of the instruction set.
        images: the tensors that are held with planes side by side.
        arrays: by the operator's name and theirs.
        fits_int32: names of the requantizations and attentions whose 64-bit results fit int32.
    """

    program: Outline
    operators: InitVar[Iterable[Operator]]
    jobs: Sequence[Job]
    lanes: int
    panel_width: int
    depth: int
    offset: int
    images: dict[str, Image] = field(init=False)
    arrays: dict[tuple[str, str], Array] = field(default_factory=dict)
    fits_int32: set[str] = field(default_factory=set)

    def __post_init__(self, operators: Iterable[Operator]) -> None:
        object.__setattr__(self, "images", planes_last(self.program, self.jobs))
        bounds: dict[str, Tensor] = {}
        for operator in operators:
            for name, array in self._arrays_of(operator):
                self.arrays[operator.name, name] = aligned(array)
                if array.nbytes > _LARGE:
                    trim_heap()
            match operator:
                case Conv1d():
                    kind = self.program.tensors[operator.input]
                    bounds[operator.output] = accumulator_bound(operator, kind)
                case Conv2d():
                    kind = self.program.tensors[operator.input]
                    bands = operator.reduced(operator.bands)
                    bound = accumulator_bound(operator, kind).repeat_interleave(bands)
                    bounds[operator.output] = bound
                case Requantize():
                    if self._fits_int32(operator, bounds):
                        self.fits_int32.add(operator.name)
                case Attention():
                    if _scores_fit_int32(operator):
                        self.fits_int32.add(operator.name)
        trim_heap()

    def address(self, operator: Operator, name: str) -> int:
        """Where an array lies."""
        return int(self.arrays[operator.name, name].ctypes.data)

    def is_upper(self, operator: Requantize, index: int) -> bool:
        """Whether a term's results and their rounding lie in the upper halves of its products."""
        return bool((self.arrays[operator.name, f"e{index}"] >= 33).all())

    def _arrays_of(self, operator: Operator) -> Iterator[tuple[str, Array]]:
        match operator:
            case Conv1d() if operator.groups > 1:
                weight = operator.weight[:, 0]
                yield "weight", pack_depthwise(weight.numpy(), self.lanes, self.depth)
                yield "bias", self._bias(operator)
            case Conv1d():
                weight = operator.weight
                if operator.input in self.images:
                    out, channels, taps = weight.shape
                    planar = weight.reshape(out, *self.images[operator.input], taps)
                    weight = planar.transpose(1, 2).reshape(out, channels, taps)
                runs = weight.permute(0, 2, 1)  # (out, taps, in)
                if operator.dilation == 1:  # the taps lie side by side
                    runs = runs.flatten(1)[:, None]
                yield "weight", pack_panels(runs.numpy(), self.panel_width, self.depth)
                yield "bias", self._bias(operator)
            case Conv2d():
                runs = operator.weight.permute(0, 2, 3, 1).flatten(2)  # (out, taps, taps * in)
                yield "weight", pack_panels(runs.numpy(), self.panel_width, self.depth)
                yield "bias", self._bias(operator)
            case Requantize():
                image = self.images.get(operator.output)
                every = slice(None, None, image.bands if image else 1)
                for index, term in enumerate(operator.terms):
                    # 0 * 2^-e is 0 whatever e: take one that keeps a term in the upper half
                    e = term.e.int().masked_fill(term.m == 0, 33)
                    yield f"m{index}", pad_channels(term.m[every].numpy(), 0)
                    yield f"e{index}", pad_channels(e[every].numpy(), 33)
            case LayerNorm():
                shift = operator.constants.e.long()
                rounding = operator.constants.offset + (torch.ones_like(shift) << (shift - 1))
                yield "m", operator.constants.m.long().numpy()
                yield "e", shift.numpy()
                yield "rounding", rounding.numpy()
            case Sigmoid() | Swish():
                target = self.program.tensors[operator.output]
                table = function_table(operator, self.program.tensors)
                yield "table", (table.short() + zero_byte(target)).numpy().astype(np.uint8)
            case Positions():
                yield "table", operator.table.contiguous().numpy()
            case Attention():
                yield "content_bias", operator.content_bias.contiguous().numpy()
                yield "distance_bias", operator.distance_bias.contiguous().numpy()

    def _bias(self, conv: Conv1d | Conv2d) -> Array:
        zero = zero_byte(self.program.tensors[conv.input])
        return pack_bias(conv.bias, conv.weight, zero - self.offset)

    def _fits_int32(self, operator: Requantize, bounds: Mapping[str, Tensor]) -> bool:
        largest = torch.zeros(self.program.tensors[operator.output].channels, dtype=torch.int64)
        for term in operator.terms:
            kind = self.program.tensors[term.input]
            bound = bounds.get(term.input, torch.tensor(kind.magnitude))
            largest += ((bound * term.m.long()) >> term.e.long()) + 1
        return int(largest.max()) < 2**31


def _scores_fit_int32(attention: Attention) -> bool:
    """Whether scores, their differences, and the exponents made of them stay within int32."""
    largest = 2
    for bias, (m, e) in (
        (attention.content_bias, attention.content),
        (attention.distance_bias, attention.distance),
    ):
        size = bias.shape[0] // attention.heads
        bound = size * (128 + int(bias.long().abs().max())) * 128
        largest += bound * int(m) >> int(e)
    m, e = attention.exponent
    return largest < 2**30 and (2 * largest * int(m) >> int(e)) + 1 < 2**31
