"""What must hold of the operators in `zqlib.integer.operators` for a program to be built."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from zqlib.errors import LoweringError
from zqlib.integer.arithmetic import MAX_SHIFT
from zqlib.integer.nonlinear import MAX_CHANNELS, MAX_EPS
from zqlib.integer.operators import (
    Attention,
    Conv1d,
    Conv2d,
    LayerNorm,
    Positions,
    Product,
    Sigmoid,
    Swish,
)
from zqlib.integer.packing import group_multipliers
from zqlib.integer.tensor_type import ACCUMULATOR, TensorType

__all__ = ["MAX_SIZE", "accumulator_bound", "check", "require", "require_weights"]

MAX_SIZE = 2**12
"""Largest stride, padding and dilation: a file cannot ask for more memory than its input does."""

_MAX_FRAMES = 2**16  # in a table of positions; keeps the sum of attention weights within int32


def require(condition: bool, name: str, rule: str) -> None:
    """Refuse an operator that breaks a rule.

    Raises:
        LoweringError: the condition does not hold.
    """
    if not condition:
        raise LoweringError(f"Layer {name} breaks a rule of integer programs: {rule}.")


def require_weights(conv: Conv1d | Conv2d) -> None:
    """Refuse weights that are not int8 of so many bits, or no products with their sub-scales.

    Raises:
        LoweringError: they are not.
    """
    weight, bits, name = conv.weight, conv.weight_bits, conv.name
    require(type(bits) is int and 2 <= bits <= 8, name, "weights have 2 to 8 bits")
    require(weight.dtype == torch.int8, name, "weights are int8")
    if conv.group_size is not None:
        groups = type(conv.group_size) is int and 1 <= conv.group_size <= MAX_SIZE and bits < 8
        require(groups, name, f"groups of fewer than 8 bits have 1 to {MAX_SIZE} weights")
        multipliers = group_multipliers(weight, bits, conv.group_size)
        require(bool((multipliers > 0).all()), name, "weights are multiples of their sub-scales")
        return
    limit = 2 ** (bits - 1) - 1
    least, largest = map(int, weight.aminmax())
    require(-limit <= least and largest <= limit, name, f"weights are within [-{limit}, {limit}]")


def accumulator_bound(conv: Conv1d | Conv2d, input_type: TensorType) -> Tensor:
    """Largest |accumulator| that any input can produce, (out,) int64.

    sum over taps of |w_q| * max|x_q| + |b_q|: also bounds every partial sum, in any order.
    """
    size = conv.weight.abs().flatten(1).numpy()  # int8 holds it: no weight is -128
    bound = torch.from_numpy(size.sum(1, dtype=np.int64)) * input_type.magnitude
    return bound if conv.bias is None else bound + conv.bias.long().abs()


def check(operator: object, tensors: Mapping[str, TensorType]) -> None:
    """Refuse an operator whose tensors or constants break a rule.

    Raises:
        LoweringError: it does.
    """
    match operator:
        case Conv2d():
            _check_conv2d(operator, tensors)
        case LayerNorm():
            _check_layer_norm(operator, tensors)
        case Sigmoid() | Swish():
            _check_function(operator, tensors)
        case Product():
            first, second = (tensors[name] for name in operator.reads)
            small = first.dtype != torch.int32 and second.dtype != torch.int32
            require(small, operator.name, "a product reads int8 or uint8")
            same = first.channels == second.channels
            target = ACCUMULATOR(first.channels)
            require(
                same and tensors[operator.output] == target,
                operator.name,
                "a product writes an accumulator of as many channels as it reads",
            )
        case Positions():
            _check_positions(operator, tensors)
        case Attention():
            _check_attention(operator, tensors)
        case _:
            raise LoweringError(f"{type(operator).__name__} is no operator of integer programs.")


def _check_conv2d(conv: Conv2d, tensors: Mapping[str, TensorType]) -> None:
    source, name = tensors[conv.input], conv.name
    shape = conv.weight.shape
    square = conv.weight.ndim == 4 and shape[2] == shape[3]
    require(square, name, "weights are (out, in, taps, taps)")
    require_weights(conv)
    _require_vector(conv.bias, torch.int32, shape[0], name, "the bias")
    sizes = (conv.stride, conv.bands, conv.padding + 1)
    require(
        all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes),
        name,
        f"stride, bands and padding are below {MAX_SIZE}",
    )
    require(source.dtype != torch.int32, name, "a convolution reads int8 or uint8")
    require(source.channels == shape[1] * conv.bands, name, "channels are planes times bands")
    bands = conv.reduced(conv.bands)
    require(
        bands >= 1 and tensors[conv.output] == ACCUMULATOR(shape[0] * bands),
        name,
        "a convolution writes an accumulator",
    )
    bound = int(accumulator_bound(conv, source).max())
    require(bound < 2**31, name, "its accumulator fits int32")


def _check_layer_norm(norm: LayerNorm, tensors: Mapping[str, TensorType]) -> None:
    source, target, constants = tensors[norm.input], tensors[norm.output], norm.constants
    channels, name = source.channels, norm.name
    same = target.channels == channels <= MAX_CHANNELS
    require(same, name, f"a LayerNorm keeps its channels, at most {MAX_CHANNELS}")
    _require_vector(constants.m, torch.int32, channels, name, "m")
    _require_vector(constants.e, torch.int8, channels, name, "e")
    _require_vector(constants.offset, torch.int64, channels, name, "the offset")
    shifts = bool(((constants.e >= 1) & (constants.e <= 60)).all())
    require(shifts, name, "e is within [1, 60]")
    room = bool(((constants.offset <= 2**60) & (constants.offset >= -(2**60))).all())
    require(room, name, "the offset is within 2^60")
    eps = type(constants.eps) is int and 0 <= constants.eps < MAX_EPS
    require(eps, name, "eps is a small integer")


def _check_function(operator: Sigmoid | Swish, tensors: Mapping[str, TensorType]) -> None:
    source, target, name = tensors[operator.input], tensors[operator.output], operator.name
    require(source.channels == target.channels, name, "a function keeps the channels")
    require(source.magnitude < 1 << 16, name, "a function reads at most 17 bits")
    require(target.dtype != torch.int32, name, "a function writes int8 or uint8")
    _require_dyadic(operator.exponent, name)
    if isinstance(operator, Swish):
        _require_dyadic(operator.gain, name)
        zero = type(operator.zero) is int and 0 <= operator.zero <= target.high
        require(zero, name, "zero is a level of the output")
    else:
        high = type(operator.high) is int and 1 <= operator.high <= target.high
        require(high, name, "one is a level of the output")


def _check_positions(operator: Positions, tensors: Mapping[str, TensorType]) -> None:
    table, name = operator.table, operator.name
    require(
        table.ndim == 2 and table.dtype == torch.int8 and 1 <= len(table) < _MAX_FRAMES,
        name,
        f"positions are a table of int8, with fewer than {_MAX_FRAMES} rows",
    )
    target = tensors[operator.output]
    fits = target.dtype == torch.int8 and target.channels == table.shape[1]
    require(fits, name, "positions are int8 of the table's channels")
    largest = int(table.short().abs().max())
    require(largest <= min(target.high, -target.low), name, "every row can change its sign")


def _check_attention(attention: Attention, tensors: Mapping[str, TensorType]) -> None:
    name = attention.name
    kinds = [tensors[read] for read in attention.reads]
    channels = kinds[0].channels
    same = all(kind.dtype == torch.int8 and kind.channels == channels for kind in kinds)
    require(same, name, "an attention reads int8 of the same channels")
    heads = type(attention.heads) is int and attention.heads >= 1 and not channels % attention.heads
    require(heads, name, "the heads share the channels evenly")
    size = channels // attention.heads
    for bias in (attention.content_bias, attention.distance_bias):
        _require_vector(bias, torch.int32, channels, name, "a bias")
        largest = int(bias.long().abs().max())
        require(size * (128 + largest) * 128 < 2**31, name, "its scores fit int32")
    _require_dyadic(attention.content, name, least=8)  # two of them are added in int64
    _require_dyadic(attention.distance, name, least=8)
    _require_dyadic(attention.exponent, name)
    require(
        tensors[attention.output] == ACCUMULATOR(channels), name, "attention writes an accumulator"
    )


def _require_vector(value: Tensor, dtype: torch.dtype, size: int, name: str, what: str) -> None:
    fits = value.dtype == dtype and value.shape == (size,)
    require(fits, name, f"{what} is {str(dtype).removeprefix('torch.')}, {size} values")


def _require_dyadic(number: tuple[Tensor, Tensor], name: str, least: int = 1) -> None:
    m, e = number
    _require_vector(m, torch.int32, 1, name, "m")
    _require_vector(e, torch.int8, 1, name, "e")
    in_range = int(m) == 0 or (int(m) >= 1 << 30 and least <= int(e))
    require(in_range and 1 <= int(e) <= MAX_SHIFT, name, "(m, e) is a dyadic number")
