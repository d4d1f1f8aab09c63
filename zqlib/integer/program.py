"""The integer program: typed tensors and a list of operators that hold nothing but integers.

Three operators carry a convolutional CTC model. A convolution leaves its int32 accumulator; a
requantization brings one accumulator, or the sum of several (a residual), to the scale of its
output; argmax reads the token ids off the logits. Those of `zqlib.integer.operators` are what a
Conformer needs besides. A backend is free to fuse them, not to change a bit of the result.

Every tensor is (batch, channels, frames). Each has a number of valid frames per utterance, and a
convolution reads positions beyond it as 0, so that padding never changes an integer.

Building a `Program` checks it: types, shapes in channels and in frames, and the proof that no
accumulator can overflow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from zqlib.errors import LoweringError
from zqlib.integer.arithmetic import MAX_SHIFT
from zqlib.integer.operators import (
    Argmax,
    Attention,
    Conv1d,
    Conv2d,
    Operator,
    Positions,
    Requantize,
    Term,
)
from zqlib.integer.rules import MAX_SIZE, accumulator_bound, check, require, require_weights
from zqlib.integer.tensor_type import ACCUMULATOR, TensorType

__all__ = [
    "ACCUMULATOR",
    "Argmax",
    "Conv1d",
    "Operator",
    "Outline",
    "Program",
    "Requantize",
    "TensorType",
    "Term",
    "accumulator_bound",
]


@dataclass(frozen=True, eq=False)
class Outline:
    """A list of operators; their weights may be on torch's device `meta`, of which only types and
    shapes are known.

    Attributes:
        tensors: the type of every tensor by name.
        operators: in order of execution.
        input: name of the quantized features.
        logits: name of the int32 logits, on one scale common to all classes.
        tokens: name of the token ids.
    """

    tensors: Mapping[str, TensorType]
    operators: Iterable[Operator]
    input: str
    logits: str
    tokens: str


@dataclass(frozen=True, eq=False)
class Program(Outline):
    """A checked list of operators, with their weights.

    Raises:
        LoweringError: the program reads a tensor before it is written, names two operators alike,
            mixes shapes or types, or has a layer whose accumulator could exceed int32.
    """

    def __post_init__(self) -> None:
        written = {self.input: _Frames()}
        names = set()
        for operator in self.operators:
            if operator.name in names:
                raise LoweringError(f"Two operators are named {operator.name}.")
            names.add(operator.name)
            for name in operator.reads:
                if name not in written:
                    raise LoweringError(f"{operator.name} reads {name!r} before it is written.")
            if operator.output in written:
                raise LoweringError(f"{operator.name} writes {operator.output!r} a second time.")
            if not {*operator.reads, operator.output} <= self.tensors.keys():
                raise LoweringError(f"{operator.name} uses a tensor that has no type.")
            match operator:
                case Conv1d():
                    self._check_conv(operator)
                    written[operator.output] = written[operator.input].after(operator)
                case Requantize():
                    self._check_requantize(operator)
                    frames = {written[name] for name in operator.reads}
                    require(len(frames) == 1, operator.name, "terms have the same frames")
                    written[operator.output] = frames.pop()
                case Argmax():
                    classes = self.tensors[operator.input].channels
                    target = self.tensors[operator.output]
                    indices = TensorType(1, torch.int32, 0, classes - 1)
                    require(target == indices, operator.name, "an argmax writes int32 indices")
                    written[operator.output] = written[operator.input]
                case _:
                    check(operator, self.tensors)
                    sources = [written[name] for name in operator.reads]
                    written[operator.output] = _frames_of(operator, sources)
        if not {self.logits, self.tokens} <= written.keys() - {self.input}:
            raise LoweringError("The program never writes its logits or its tokens.")
        for name in (self.logits, self.tokens):
            require(not written[name].distances, name, "logits and tokens belong to frames")
            require(self.tensors[name].dtype == torch.int32, name, "logits and tokens are int32")
        require(self.tensors[self.tokens].channels == 1, self.tokens, "tokens have one channel")

    def outline(self) -> Outline:
        """The same without the weights, for a backend that has packed them."""
        operators = tuple(
            replace(operator, weight=operator.weight.to("meta"))
            if isinstance(operator, Conv1d | Conv2d)
            else operator
            for operator in self.operators
        )
        return Outline(self.tensors, operators, self.input, self.logits, self.tokens)

    def _check_conv(self, conv: Conv1d) -> None:
        source, target = self.tensors[conv.input], self.tensors[conv.output]
        require(conv.weight.ndim == 3, conv.name, "weights are (out, in / groups, taps)")
        require_weights(conv)
        out, per_group, _ = conv.weight.shape
        require(
            conv.bias is None or (conv.bias.dtype == torch.int32 and conv.bias.shape == (out,)),
            conv.name,
            "the bias is int32, one per output channel",
        )
        dense = conv.groups == 1 and per_group == source.channels
        depthwise = conv.groups == source.channels == out and per_group == 1
        require(dense or depthwise, conv.name, "a convolution is dense or depthwise")
        require(source.dtype != torch.int32, conv.name, "a convolution reads int8 or uint8")
        require(target == ACCUMULATOR(out), conv.name, "a convolution writes an accumulator")
        sizes = (conv.stride, conv.dilation, conv.padding + 1)
        require(
            all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes),
            conv.name,
            f"stride, dilation and padding are below {MAX_SIZE}",
        )
        bound = int(accumulator_bound(conv, source).max())
        if bound >= 2**31:
            raise LoweringError(
                f"The accumulator of layer {conv.name} could reach {bound}, beyond int32; "
                "use fewer bits for its weights or activations."
            )

    def _check_requantize(self, operator: Requantize) -> None:
        channels = self.tensors[operator.output].channels
        require(1 <= len(operator.terms) <= 256, operator.name, "a sum has 1 to 256 terms")
        for term in operator.terms:
            require(
                self.tensors[term.input].channels == channels,
                operator.name,
                "terms and output have the same channels",
            )
            require(
                term.m.shape == term.e.shape == (channels,)
                and term.m.dtype == torch.int32
                and term.e.dtype == torch.int8,
                operator.name,
                "m is int32 and e is int8, one per channel",
            )
            in_range = (term.m == 0) | (term.m >= 1 << 30)
            require(bool(in_range.all()), operator.name, "m is 0 or at least 2^30")
            shifts = (term.e >= 1) & (term.e <= MAX_SHIFT)
            require(bool(shifts.all()), operator.name, f"e is within [1, {MAX_SHIFT}]")
            # |round(x * m * 2^-e)| <= 2^(62-e): with e >= 8 the int64 sum of 2^8 terms is safe.
            shifts_of_sum = term.e[term.m != 0] >= 8
            require(
                len(operator.terms) == 1 or bool(shifts_of_sum.all()),
                operator.name,
                "the multipliers of a sum are below 2^23",
            )


@dataclass(frozen=True)
class _Frames:
    """How many frames a tensor has for an input of n: (n + shift) // stride + offset.

    With `distances`, it has a row for every distance between two of so many frames instead.
    """

    stride: int = 1
    shift: int = 0
    offset: int = 0
    distances: bool = False

    def after(self, conv: Conv1d | Conv2d) -> "_Frames":
        taps = conv.weight.shape[2]
        dilation = conv.dilation if isinstance(conv, Conv1d) else 1
        change = 2 * conv.padding - dilation * (taps - 1) - 1
        stride = self.stride * conv.stride
        carry, shift = divmod(self.shift + self.stride * (self.offset + change), stride)
        return _Frames(stride, shift, carry + 1, self.distances)


def _frames_of(operator: Operator, frames: Sequence[_Frames]) -> _Frames:
    """Frames of the output of an operator that is no `Conv1d`, from those of what it reads."""
    rule = "what it reads has the same frames"
    match operator:
        case Conv2d():
            return frames[0].after(operator)
        case Positions():
            require(not frames[0].distances, operator.name, rule)
            return replace(frames[0], distances=True)
        case Attention():
            *same, positions = frames
            require(positions == replace(same[0], distances=True), operator.name, rule)
            require(len({*same}) == 1 and not same[0].distances, operator.name, rule)
        case _:
            require(len({*frames}) == 1, operator.name, rule)
    return frames[0]
