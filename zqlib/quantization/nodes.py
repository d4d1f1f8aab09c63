"""Operators of a float graph. Each becomes one operator of the integer program."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from zqlib.integer.operators import ReadsInput

__all__ = [
    "Accumulating",
    "Activation",
    "FloatAttention",
    "FloatConv",
    "FloatConv2d",
    "FloatFunction",
    "FloatLayerNorm",
    "FloatOperator",
    "FloatPositions",
    "FloatProduct",
]


class _NamesOutput:
    """An operator whose output gets quantized: the tensor is named as the operator."""

    name: str

    @property
    def output(self) -> str:
        """Name of the tensor."""
        return self.name


@dataclass(frozen=True, eq=False)
class FloatConv(ReadsInput):
    """A convolution with its BatchNorm folded into `weight` and `bias`.

    Attributes:
        weight: (out, in / groups, taps) float32.
        bias: (out,) float32, or None.
        weight_scale: (out,) float64, the step of the quantized weights; None for the one whose
            last level is the largest |w|.
        weight_bits: of the quantized weights; None for the scheme's.
        group_size: weights of an output that share an integer sub-scale, of which the weights are
            multiples already; None for weights without.
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    weight_scale: Tensor | None = None
    weight_bits: int | None = None
    group_size: int | None = None


@dataclass(frozen=True)
class Activation(_NamesOutput):
    """The sum of its inputs, clipped at zero if `relu`: a tensor that gets quantized.

    Attributes:
        bits: of a tensor that the scheme's cannot hold: the residual stream of a Conformer, or
            what goes into a Swish or a sigmoid. None for the scheme's.
        group: activations of one group have one range; None for a range of its own.
        depth: how far below zero the smallest quantized value lies, if that is to be unsigned.
    """

    name: str
    inputs: tuple[str, ...]
    relu: bool
    bits: int | None = None
    group: str | None = None
    depth: float = 0.0

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return self.inputs


@dataclass(frozen=True, eq=False)
class FloatConv2d(ReadsInput):
    """A convolution over frames and bands, as many of both strided and padded.

    A tensor's channels are then its planes times its bands, the bands of a plane side by side.

    Attributes:
        weight: (out planes, in planes, taps, taps) float32.
        bias: (out planes,) float32.
        weight_scale, weight_bits, group_size: as in `FloatConv`.
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    weight_scale: Tensor | None = None
    weight_bits: int | None = None
    group_size: int | None = None


@dataclass(frozen=True, eq=False)
class FloatLayerNorm(ReadsInput, _NamesOutput):
    """LayerNorm over the channels of each frame: a tensor that gets quantized.

    Attributes:
        gamma, beta: (channels,) float32.
        bits: as in `Activation`.
    """

    name: str
    input: str
    gamma: Tensor
    beta: Tensor
    eps: float
    bits: int | None = None


@dataclass(frozen=True)
class FloatFunction(ReadsInput, _NamesOutput):
    """A function of each element of a quantized tensor: a tensor that gets quantized."""

    name: str
    input: str
    function: Literal["swish", "sigmoid"]

    def __call__(self, x: Tensor) -> Tensor:
        """The function, of any tensor of floats."""
        return torch.sigmoid(x) if self.function == "sigmoid" else functional.silu(x)


@dataclass(frozen=True)
class FloatProduct:
    """The product of two tensors, element by element."""

    name: str
    reads: tuple[str, str]
    output: str


@dataclass(frozen=True)
class FloatPositions(ReadsInput, _NamesOutput):
    """The sinusoids of all distances between the frames of `input`, for attention to read."""

    name: str
    input: str
    channels: int


@dataclass(frozen=True, eq=False)
class FloatAttention:
    """Softmax attention with relative positions: see `zqlib.models.conformer.Attention`.

    Attributes:
        reads: names of the query, the key, the value and the positions.
        content_bias, distance_bias: (channels,) float32, added to the query.
    """

    name: str
    reads: tuple[str, str, str, str]
    output: str
    heads: int
    content_bias: Tensor
    distance_bias: Tensor


FloatOperator = (
    FloatConv
    | FloatConv2d
    | Activation
    | FloatLayerNorm
    | FloatFunction
    | FloatProduct
    | FloatPositions
    | FloatAttention
)

Accumulating = FloatConv | FloatConv2d | FloatProduct | FloatAttention
"""These leave an accumulator, for an `Activation` to quantize."""
