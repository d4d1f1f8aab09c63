"""Static calibration: run the folded float graph over calibration features, keep the ranges."""

from collections.abc import Sequence

from torch import Tensor

from zqlib.quantization.graph import Activation, FloatGraph
from zqlib.quantization.ranges import Extremes, Histogram, clipping_value, quantized_levels
from zqlib.quantization.scheme import QuantScheme

__all__ = ["activation_levels", "calibrate"]


def activation_levels(graph: FloatGraph, scheme: QuantScheme) -> dict[str, tuple[int, int]]:
    """Smallest and largest quantized value of the features and of every activation."""
    levels = {graph.input: quantized_levels(scheme.activation_bits, signed=True)}
    for operator in graph.operators:
        if isinstance(operator, Activation):
            signed = not (operator.relu and scheme.unsigned_relu)
            low, high = quantized_levels(scheme.activation_bits, signed)
            levels[operator.output] = (0 if operator.relu else low, high)
    return levels


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
    levels = activation_levels(graph, scheme)
    extremes = {name: Extremes() for name in levels}
    for features, lengths in batches:
        graph.run(features, lengths, lambda name, x: extremes[name].observe(x))
    histograms = {name: Histogram(extremes[name].magnitude) for name in levels}
    if scheme.range_method != "minmax":
        for features, lengths in batches:
            graph.run(features, lengths, lambda name, x: histograms[name].observe(x))
    return {
        name: clipping_value(scheme, high, histograms[name]) / high
        for name, (_, high) in levels.items()
    }
