"""The latency of a network on a machine that is known by a few figures: a roofline with launches.

Every layer takes the longer of its arithmetic and its memory traffic (Williams et al. 2009), each
at a share of what the machine can do, and a launch. Nothing overlaps and no tensor stays in a
cache between layers. What comes out is *simulated*, and a prediction of ratios rather than of
milliseconds; how far off it is on a machine that was measured is in `relative_error`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zqlib.benchmark.layers import Layer

__all__ = ["T4", "Machine", "predict_ms", "relative_error"]

_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Machine:
    """Figures of a machine.

    Attributes:
        name: for the reader.
        matrix_gop_per_s: 10^9 multiplications and additions per second in matrix products.
        vector_gop_per_s: the same where no operand is shared, as in depthwise convolutions, which
            matrix units do not help.
        bandwidth_gb_per_s: 10^9 bytes per second to and from memory.
        launch_us: to start one layer.
        compute_efficiency, memory_efficiency: shares of the rates that real layers reach.
    """

    name: str
    matrix_gop_per_s: Mapping[str, float]
    vector_gop_per_s: Mapping[str, float]
    bandwidth_gb_per_s: float
    launch_us: float
    compute_efficiency: float
    memory_efficiency: float


T4 = Machine(
    # the data sheet: 8.1 TFLOP/s float32, 65 float16, 130 TOP/s int8, 320 GB/s
    name="NVIDIA T4 (data sheet)",
    matrix_gop_per_s={"float32": 8_100, "float16": 65_000, "int8": 130_000},
    # without tensor cores: float16 in pairs; int8 one by one on as many integer units
    vector_gop_per_s={"float32": 8_100, "float16": 16_200, "int8": 8_100},
    bandwidth_gb_per_s=320,
    # assumptions: what large products and copies usually reach on it, and a kernel in a CUDA graph
    launch_us=3.0,
    compute_efficiency=0.5,
    memory_efficiency=0.75,
)


def predict_ms(layers: Sequence[Layer], machine: Machine, precision: str) -> float:
    """Latency in ms of layers, one after the other, all of their tensors of one precision."""
    return sum(_layer_us(layer, machine, precision) for layer in layers) / 1e3


def _layer_us(layer: Layer, machine: Machine, precision: str) -> float:
    rates = machine.vector_gop_per_s if layer.depthwise else machine.matrix_gop_per_s
    compute_us = layer.operations / (rates[precision] * machine.compute_efficiency) / 1e3
    moved = _BYTES[precision] * layer.elements
    memory_us = moved / (machine.bandwidth_gb_per_s * machine.memory_efficiency) / 1e3
    return max(compute_us, memory_us) + machine.launch_us


def relative_error(predicted_ms: float, measured_ms: float) -> float:
    """Signed: -0.25 is a prediction 25 % below what was measured."""
    return predicted_ms / measured_ms - 1
