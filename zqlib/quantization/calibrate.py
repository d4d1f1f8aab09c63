"""Static calibration: run the folded float graph over calibration features, keep the ranges."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import Activation, FloatFunction, FloatLayerNorm, FloatPositions
from zqlib.quantization.ranges import (
    Extremes,
    Histogram,
    MovingAverage,
    clipping_value,
    quantized_levels,
)
from zqlib.quantization.scheme import QuantScheme

__all__ = ["activation_levels", "calibrate", "zero_points"]

_WIDE = 2**15 - 1  # tensors of 16 bits and more can spare two of them:
_HEADROOM = 4.0  # then nothing is ever clipped
_SWISH_DEPTH = 0.27847  # a Swish has its minimum, minus this, at -1.278


def activation_levels(graph: FloatGraph, scheme: QuantScheme) -> dict[str, tuple[int, int]]:
    """Smallest and largest quantized value of the features and of every quantized tensor."""
    bits = scheme.activation_bits
    signed = quantized_levels(bits, signed=True)
    levels = {graph.input: signed}
    for operator in graph.operators:
        match operator:
            case Activation(bits=int(wide)) | FloatLayerNorm(bits=int(wide)):
                levels[operator.output] = quantized_levels(wide, signed=True)
            case Activation(depth=depth) if depth > 0:
                levels[operator.output] = quantized_levels(bits, signed=False)
            case Activation(relu=True):
                # the range of a signed sum, which it reads
                signed_sum = scheme.signed_sums and operator.group is not None
                signed_relu = signed_sum or not scheme.unsigned_relu
                _, high = quantized_levels(bits, signed=signed_relu)
                levels[operator.output] = (0, high)
            case FloatFunction(function=function) if function == "sigmoid" or scheme.offset_swish:
                levels[operator.output] = quantized_levels(bits, signed=False)
            case Activation() | FloatLayerNorm() | FloatFunction() | FloatPositions():
                levels[operator.output] = signed
    return levels


def zero_points(
    graph: FloatGraph, scales: Mapping[str, float], scheme: QuantScheme
) -> dict[str, int]:
    """The quantized value of zero, for every tensor whose is not 0."""
    return {name: round(depth / scales[name]) for name, depth in _depths(graph, scheme).items()}


def _depths(graph: FloatGraph, scheme: QuantScheme) -> dict[str, float]:
    """How far below zero the smallest quantized value lies, for tensors where that is 0."""
    depths = {}
    for operator in graph.operators:
        match operator:
            case FloatFunction(function="swish") if scheme.offset_swish:
                depths[operator.output] = _SWISH_DEPTH
            case Activation(depth=depth) if depth > 0:
                depths[operator.output] = depth
    return depths


def calibrate(
    graph: FloatGraph, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
) -> dict[str, float]:
    """The scale (real value of one step) of the features and of every activation.

    Args:
        graph: the folded model.
        batches: features (batch, channels, frames) float32 and lengths (batch,) int64. Frames
            beyond a length are not looked at.
        scheme: bits and range method.

    Raises:
        InputError: an activation is zero throughout.
    """
    levels, depths = activation_levels(graph, scheme), _depths(graph, scheme)
    unit = {  # from -1 or 0 to 1, whatever the data
        operator.output
        for operator in graph.operators
        if isinstance(operator, FloatPositions)
        or (isinstance(operator, FloatFunction) and operator.function == "sigmoid")
    }
    groups = {o.output: o.group for o in graph.operators if isinstance(o, Activation) and o.group}
    ranged = {name: groups.get(name, name) for name in levels}  # tensor to who has its range
    kind = MovingAverage if scheme.range_method == "moving-average" else Extremes
    observed = {name: kind() for name in ranged.values()}
    extremes = {name: observed[holder] for name, holder in ranged.items()}
    for features, lengths in batches:
        graph.run(features, lengths, lambda name, x: extremes[name].observe(x))
    counted = {name: Histogram(extreme.magnitude) for name, extreme in observed.items()}
    histograms = {name: counted[holder] for name, holder in ranged.items()}
    if scheme.range_method in ("percentile", "mse"):
        for features, lengths in batches:
            graph.run(features, lengths, lambda name, x: histograms[name].observe(x))
    scales = {}
    for name, (_, high) in levels.items():
        if name in unit:
            scales[name] = 1 / high
        elif high >= _WIDE:
            scales[name] = _HEADROOM * extremes[name].magnitude / high
        else:
            depth = depths.get(name, 0.0)
            scales[name] = (clipping_value(scheme, high, histograms[name], depth) + depth) / high
    return scales
