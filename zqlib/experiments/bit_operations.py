"""Multiply-accumulates and bit operations of the layers of an integer program."""

from typing import Any

from zqlib.benchmark.layers import layers_of
from zqlib.integer.operators import Attention, Conv1d, Conv2d
from zqlib.integer.packing import multiplier_bits
from zqlib.integer.program import Program

__all__ = ["FRAMES", "bit_operations"]

FRAMES = 1000
"""Of 10 s of speech, for which bit operations are counted."""


def bit_operations(program: Program, frames: int) -> list[dict[str, Any]]:
    """The layers of a program that multiply, with their multiply-accumulates and bit operations.

    A bit operation count is that of the multiply-accumulates times the bits of both operands, as
    in Baskin et al. 2021 (UNIQ) without their term for the accumulator. With sub-scales, the sum of
    each group is multiplied once more; what runs here multiplies 8-bit products instead.

    Args:
        program: the program.
        frames: of the features of one utterance.

    Returns:
        For each layer `name`, `kind`, `macs`, `weight_bits`, `activation_bits` and `bops`; in
        attention both operands are activations.
    """
    operators = {operator.name: operator for operator in program.operators}
    rows = []
    for layer in layers_of(program, 1, frames):
        operator = operators[layer.name]
        if not isinstance(operator, Conv1d | Conv2d | Attention):
            continue
        kind = program.tensors[operator.reads[0]]
        activation_bits = (kind.high - kind.low).bit_length()
        weight_bits = activation_bits if isinstance(operator, Attention) else operator.weight_bits
        macs = layer.operations // 2
        bops = macs * weight_bits * activation_bits
        if not isinstance(operator, Attention) and operator.group_size is not None:
            sum_bits = weight_bits + activation_bits + (operator.group_size - 1).bit_length()
            bops += macs * multiplier_bits(weight_bits) * sum_bits // operator.group_size
        rows.append({
            "name": layer.name,
            "kind": layer.kind,
            "macs": macs,
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "bops": bops,
        })  # fmt: skip
    return rows
