"""Operators of an integer program. All of them hold integers only.

What they compute is in `zqlib.integer.reference`, `zqlib.integer.nonlinear` and
`zqlib.integer.attention`.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from zqlib.integer.nonlinear import LayerNormConstants

__all__ = [
    "Argmax",
    "Attention",
    "Conv1d",
    "Conv2d",
    "LayerNorm",
    "Operator",
    "Positions",
    "Product",
    "ReadsInput",
    "Requantize",
    "Sigmoid",
    "Swish",
    "Term",
]

_Size = TypeVar("_Size", int, Tensor)


class ReadsInput:
    """An operator that reads one tensor, its `input`."""

    input: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class Conv1d(ReadsInput):
    """acc[o, t] = bias[o] + sum over i, k of weight[o, i, k] * x[i, stride * t + dilation * k - p].

    Attributes:
        weight: (out, in / groups, taps) int8, within the symmetric range of `weight_bits`; with
            sub-scales, a multiple of such a weight (see `zqlib.integer.packing`).
        bias: (out,) int32, or None for zeros.
        groups: 1 (dense) or the number of channels (depthwise).
        group_size: weights of an output that share a sub-scale, taps of one input after the other;
            None for weights without sub-scales.
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor | None
    weight_bits: int
    stride: int
    padding: int
    dilation: int
    groups: int
    group_size: int | None = None

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames after the convolution, (batch,) int64."""
        span = self.dilation * (self.weight.shape[2] - 1)
        numerator = lengths + 2 * self.padding - span - 1
        return numerator // self.stride + 1


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a requantization: `input` times m * 2^-e per channel."""

    input: str
    m: Tensor
    e: Tensor


@dataclass(frozen=True, eq=False)
class Requantize:
    """y = clamp(sum over terms of round(x * m * 2^-e)); a ReLU is an output type with low 0."""

    name: str
    terms: tuple[Term, ...]
    output: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return tuple(term.input for term in self.terms)


@dataclass(frozen=True)
class Argmax(ReadsInput):
    """The channel of the largest value per frame, the first one of equals: (batch, 1, frames)."""

    name: str
    input: str
    output: str


@dataclass(frozen=True, eq=False)
class Conv2d(ReadsInput):
    """A dense convolution over frames and bands, stride and padding the same along both.

    The channels of its tensors are planes times bands, the bands of a plane side by side.

    Attributes:
        weight: (out planes, in planes, frames, bands) int8; as in `Conv1d`.
        bias: (out planes,) int32.
        bands: of the input.
        group_size: as in `Conv1d`.
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor
    weight_bits: int
    stride: int
    padding: int
    bands: int
    group_size: int | None = None

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames after the convolution, (batch,) int64."""
        return self.reduced(lengths)

    def reduced(self, size: _Size) -> _Size:
        """Frames or bands after the convolution, of so many before."""
        return (size + 2 * self.padding - self.weight.shape[2]) // self.stride + 1


@dataclass(frozen=True, eq=False)
class LayerNorm(ReadsInput):
    """LayerNorm over the channels of every frame."""

    name: str
    input: str
    output: str
    constants: LayerNormConstants


@dataclass(frozen=True, eq=False)
class Sigmoid(ReadsInput):
    """The logistic function of each element; `high` stands for one.

    Attributes:
        exponent: the dyadic number (m, e), each (1,), from the input to exponents of two.
        high: largest level of the output.
    """

    name: str
    input: str
    output: str
    exponent: tuple[Tensor, Tensor]
    high: int


@dataclass(frozen=True, eq=False)
class Swish(ReadsInput):
    """Each element times its logistic function.

    Attributes:
        exponent: as in `Sigmoid`.
        gain: the dyadic number (m, e), each (1,), from the product in steps of 2^-15 of the input's
            to steps of the output.
        zero: the output that stands for zero.
    """

    name: str
    input: str
    output: str
    exponent: tuple[Tensor, Tensor]
    gain: tuple[Tensor, Tensor]
    zero: int = 0


@dataclass(frozen=True)
class Product:
    """The accumulator a * b, element by element."""

    name: str
    reads: tuple[str, str]
    output: str


@dataclass(frozen=True, eq=False)
class Positions(ReadsInput):
    """Rows for the distances n - 1 ... 1 - n between the n frames of `input`, for one utterance.

    Attributes:
        table: (most frames, channels) int8: the rows of the distances 0, 1, 2 ... A sine changes
            its sign with that of the distance (even channels), a cosine does not (odd ones).
    """

    name: str
    input: str
    output: str
    table: Tensor


@dataclass(frozen=True, eq=False)
class Attention:
    """The accumulator of softmax((q + u) k + shift((q + v) p)) v, in steps of 1/255 of v's.

    Attributes:
        reads: names of the query, the key, the value (int8) and the positions (int8).
        heads: they share the channels evenly.
        content_bias, distance_bias: (channels,) int32, u and v in steps of the query.
        content, distance: dyadic numbers (m, e), each (1,), from the two products to scores.
        exponent: the dyadic number from scores to exponents of two (`nonlinear.softmax_weights`).
    """

    name: str
    reads: tuple[str, str, str, str]
    output: str
    heads: int
    content_bias: Tensor
    distance_bias: Tensor
    content: tuple[Tensor, Tensor]
    distance: tuple[Tensor, Tensor]
    exponent: tuple[Tensor, Tensor]


Operator = (
    Conv1d
    | Conv2d
    | Requantize
    | LayerNorm
    | Sigmoid
    | Swish
    | Product
    | Positions
    | Attention
    | Argmax
)
