"""The `reference` backend: the executable specification, in torch integer tensors.

Runs under `IntegerOnly`, so it cannot compute in floating point unnoticed. Products are
`torch._int_mm` (int8 x int8 or uint8 x int8 to int32), or of int32 where that is faster. Inside,
tensors are (batch, frames, channels): a pointwise convolution is then one matrix product, and a
depthwise tap one shifted multiply-add of contiguous rows.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zqlib.integer.arithmetic import requantize
from zqlib.integer.attention import attend, conv2d, positions
from zqlib.integer.batch import check_input, output_lengths
from zqlib.integer.guard import IntegerOnly
from zqlib.integer.nonlinear import layer_norm, sigmoid, swish
from zqlib.integer.operators import Attention, Conv2d, LayerNorm, Positions, Product, Sigmoid, Swish
from zqlib.integer.products import product
from zqlib.integer.program import Argmax, Conv1d, Program, Requantize

__all__ = ["ProgramOutput", "run"]


@dataclass(frozen=True)
class ProgramOutput:
    """What a program computes for a batch.

    Attributes:
        tokens: (batch, frames) int32 token ids, meaningful below each length.
        logits: (batch, classes, frames) int32, on one common scale.
        lengths: (batch,) int64 valid frames.
    """

    tokens: Tensor
    logits: Tensor
    lengths: Tensor


def run(
    program: Program,
    features: Tensor,
    lengths: Tensor,
    observe: Callable[[str, Tensor], None] | None = None,
) -> ProgramOutput:
    """Execute a program.

    Args:
        program: the program.
        features: (batch, channels, frames), quantized, of the program's input type.
        lengths: (batch,) int64, valid frames of each utterance.
        observe: called with the name and the values, (batch, channels, frames), of every operator's
            output, and bound to integers as all that runs here.

    Returns:
        Token ids, logits and output lengths.

    Raises:
        InputError: the features or the lengths do not fit the program's input, or an utterance is
            shorter than a convolution without padding needs.
        FloatInIntegerProgram: an operation touched a floating-point tensor.
    """
    check_input(program.tensors[program.input], features, lengths)
    last_use = Counter(name for operator in program.operators for name in operator.reads) + Counter(
        [program.logits, program.tokens]
    )
    with IntegerOnly():  # type: ignore[no-untyped-call]
        values = {program.input: (features.transpose(1, 2).contiguous(), lengths)}

        def take(name: str) -> tuple[Tensor, Tensor]:
            last_use[name] -= 1  # free a tensor as soon as nothing reads it any more
            return values[name] if last_use[name] else values.pop(name)

        for operator in program.operators:
            match operator:
                case Conv1d():
                    x, valid = take(operator.input)
                    result = _conv1d(operator, _mask(x, valid)), output_lengths(operator, valid)
                case Requantize():
                    target = program.tensors[operator.output]
                    terms = [(*take(term.input), term.m, term.e) for term in operator.terms]
                    total = requantize(terms[0][0], *terms[0][2:])
                    for x, _, m, e in terms[1:]:
                        total += requantize(x, m, e)
                    result = total.clamp_(target.low, target.high).to(target.dtype), terms[0][1]
                case Conv2d():
                    x, valid = take(operator.input)
                    result = conv2d(operator, _mask(x, valid)), output_lengths(operator, valid)
                case LayerNorm():
                    x, valid = take(operator.input)
                    target = program.tensors[operator.output]
                    normed = layer_norm(x, operator.constants, target.low, target.high)
                    result = normed.to(target.dtype), valid
                case Sigmoid():
                    x, valid = take(operator.input)
                    kind = program.tensors[operator.output].dtype
                    result = sigmoid(x, *operator.exponent, operator.high).to(kind), valid
                case Swish():
                    x, valid = take(operator.input)
                    target = program.tensors[operator.output]
                    total = swish(x, operator.exponent, operator.gain).add_(operator.zero)
                    result = total.clamp_(target.low, target.high).to(target.dtype), valid
                case Product():
                    (x, valid), (y, _) = (take(name) for name in operator.reads)
                    result = x.to(torch.int32) * y, valid
                case Positions():
                    x, _ = take(operator.input)
                    table = positions(operator, x.shape[1])
                    result = table, torch.tensor([table.shape[1]])
                case Attention():
                    parts = [take(name) for name in operator.reads]
                    valid = parts[0][1]
                    attended = torch.arange(parts[0][0].shape[1]) < valid[:, None]
                    query, key, value, position = (part[0] for part in parts)
                    result = attend(operator, query, key, value, position, attended), valid
                case Argmax():
                    x, valid = take(operator.input)
                    result = x.argmax(2, keepdim=True).to(torch.int32), valid
            if observe:
                observe(operator.output, result[0].transpose(1, 2))
            values[operator.output] = result
        logits, lengths = values[program.logits]
        tokens = values[program.tokens][0][:, :, 0]
        return ProgramOutput(tokens, logits.transpose(1, 2), lengths)


def _mask(x: Tensor, lengths: Tensor) -> Tensor:
    if int(lengths.min()) == x.shape[1]:
        return x
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    return x.masked_fill(~valid[:, :, None], 0)


def _conv1d(conv: Conv1d, x: Tensor) -> Tensor:
    """(batch, frames, in) int8 or uint8 to (batch, frames', out) int32."""
    out, _, taps = conv.weight.shape
    x = torch.constant_pad_nd(x, (0, 0, conv.padding, conv.padding), 0)
    frames = (x.shape[1] - conv.dilation * (taps - 1) - 1) // conv.stride + 1
    bias = torch.zeros(out, dtype=torch.int32) if conv.bias is None else conv.bias
    accumulator = bias.repeat(x.shape[0], frames, 1)
    depthwise = conv.groups > 1
    if depthwise:
        x = x.to(torch.int32)
        weight = conv.weight[:, 0, :].t().to(torch.int32).contiguous()  # (taps, channels)
    else:
        weight = conv.weight.permute(2, 1, 0).contiguous()  # (taps, in, out)
    for tap in range(taps):
        start = tap * conv.dilation
        shifted = x[:, start : start + (frames - 1) * conv.stride + 1 : conv.stride, :]
        if depthwise:
            accumulator.addcmul_(shifted, weight[tap])
        else:
            rows = shifted.reshape(-1, x.shape[2])
            accumulator += product(rows, weight[tap]).view_as(accumulator)
    return accumulator
