"""A float model as a short list of operators, its BatchNorm layers folded away.

The same two operators, at the same points, as the integer program that it will be lowered to: a
convolution, and an activation that sums branches and may clip at zero. Every activation's output
is a tensor that gets quantized, so calibration needs to look nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zqlib.models.jasper import masked_conv

__all__ = ["Activation", "FloatConv", "FloatGraph"]


@dataclass(frozen=True, eq=False)
class FloatConv:
    """A convolution with its BatchNorm folded into `weight` and `bias`.

    Attributes:
        weight: (out, in / groups, taps) float32.
        bias: (out,) float32, or None.
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

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return (self.input,)


@dataclass(frozen=True)
class Activation:
    """The sum of its inputs, clipped at zero if `relu`: a tensor that gets quantized."""

    name: str
    inputs: tuple[str, ...]
    relu: bool

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return self.inputs

    @property
    def output(self) -> str:
        """The tensor is named as the activation."""
        return self.name


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Operators in order of execution.

    Attributes:
        operators: convolutions and activations.
        input: name of the features.
        channels: channels of the features.
        logits: name of the last convolution's output.
    """

    operators: tuple[FloatConv | Activation, ...]
    input: str
    channels: int
    logits: str

    @torch.no_grad()
    def run(
        self,
        features: Tensor,
        lengths: Tensor,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Execute in float32.

        Args:
            features: (batch, channels, frames) float32.
            lengths: (batch,) int64.
            observe: called with the name and the valid values, (channels, frames of all
                utterances), of the features and of every activation.

        Returns:
            Logits (batch, classes, frames) float32 and output lengths (batch,).
        """
        x = features.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        values = {self.input: (x, lengths)}
        last_reader = {name: operator for operator in self.operators for name in operator.reads}
        if observe:
            observe(self.input, _valid(x, lengths))
        for operator in self.operators:
            if isinstance(operator, FloatConv):
                x, lengths = values[operator.input]
                result = masked_conv(
                    x, lengths, operator.weight, operator.bias,
                    operator.stride, operator.padding, operator.dilation, operator.groups,
                )  # fmt: skip
            else:
                total, lengths = values[operator.inputs[0]]
                for name in operator.inputs[1:]:
                    total = total + values[name][0]
                result = (total.relu() if operator.relu else total), lengths
                if observe:
                    observe(operator.output, _valid(*result))
            values[operator.output] = result
            for name in set(operator.reads):
                if last_reader[name] is operator:
                    del values[name]
        logits, lengths = values[self.logits]
        return logits.squeeze(2), lengths


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, channels, 1, frames) to the valid frames, (channels, frames)."""
    return torch.cat([row[:, 0, :length] for row, length in zip(x, lengths, strict=True)], dim=1)
