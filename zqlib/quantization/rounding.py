"""Where a model with Q/DQ rounds and its integer program does not.

Runtimes that read Q/DQ run a convolution in integers if its output is 8-bit as well. An integer
program keeps the accumulators of a residual sum's branches, which get an 8-bit tensor of their own
here. A product of matrices may leave floats, so linear layers need none; nor does what a depthwise
convolution of a Conformer hands to a Swish, where 8 bits are too few.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import (
    Activation,
    FloatConv,
    FloatConv2d,
    FloatLayerNorm,
    FloatOperator,
)
from zqlib.quantization.scheme import QuantScheme

__all__ = ["calibrate_rounded", "linear_layers", "round_convolutions"]


def linear_layers(graph: FloatGraph) -> set[str]:
    """Names of convolutions of one tap that are linear layers.

    All of them in a network with LayerNorm (a Conformer), else only the one that makes the logits:
    a pointwise convolution stays one among convolutions.
    """
    sequence = any(isinstance(operator, FloatLayerNorm) for operator in graph.operators)
    return {
        operator.name
        for operator in graph.operators
        if isinstance(operator, FloatConv)
        and operator.weight.shape[2] == operator.groups == 1
        and (sequence or operator.output == graph.logits)
    }


def calibrate_rounded(
    graph: FloatGraph, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
) -> dict[str, float]:
    """The scales that Q/DQ needs, and with them those of `calibrate`, whose arguments these are."""
    return calibrate(round_convolutions(graph), batches, scheme)


def round_convolutions(graph: FloatGraph) -> FloatGraph:
    """The same function with an `Activation` after every convolution of which a sum reads.

    Calibration then finds scales for these too, in its one run, beside those that `lower` needs for
    the graph as it was. Applied again, it changes nothing.
    """
    readers = graph.readers()
    linear = linear_layers(graph)
    operators: list[FloatOperator] = []
    rounded: dict[str, str] = {}
    for operator in graph.operators:
        if isinstance(operator, Activation):
            names = tuple(rounded.get(name, name) for name in operator.inputs)
            operator = replace(operator, inputs=names)
        operators.append(operator)
        if isinstance(operator, FloatConv | FloatConv2d) and operator.name not in linear:
            if not _is_rounded(operator.output, readers):
                point = Activation(f"{operator.name}.rounded", (operator.output,), relu=False)
                operators.append(point)
                rounded[operator.output] = point.name
    return replace(graph, operators=tuple(operators))


def _is_rounded(accumulator: str, readers: dict[str, list[FloatOperator]]) -> bool:
    match readers.get(accumulator):
        case [Activation(inputs=(_,))]:
            return True
    return False
