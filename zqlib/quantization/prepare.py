"""From a network to what `lower` builds a program of."""

from collections.abc import Sequence

from torch import Tensor

from zqlib.devices import device_of
from zqlib.models import Network
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.equalize import equalize
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.recentre import recentre
from zqlib.quantization.reconstruction import reconstruct
from zqlib.quantization.rounding import calibrate_rounded
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weights import quantize_weights

__all__ = ["prepare"]


def prepare(
    network: Network,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    *,
    q_dq: bool = False,
    progress: bool = False,
) -> tuple[FloatGraph, dict[str, float]]:
    """Fold a network, recentre and equalize it, calibrate its activations and round its weights.

    Args:
        network: a QuartzNet, Jasper or Conformer; on a GPU, all is computed there.
        batches: calibration features (batch, n_mels, frames) float32 and lengths (batch,) int64.
        scheme: bits and methods.
        q_dq: find scales also for the tensors that only Q/DQ rounds.
        progress: show a bar where rounding the weights takes long.

    Returns:
        The graph, on the CPU, its weights on their grid, and the scales of its activations.

    Raises:
        InputError: an activation is zero throughout.
    """
    device = device_of(network)
    batches = [(features.to(device), lengths.to(device)) for features, lengths in batches]
    graph = recentre(fold(network, scheme), batches, scheme)
    graph = equalize(graph, batches, scheme)
    scales = (calibrate_rounded if q_dq else calibrate)(graph, batches, scheme)
    rounded = quantize_weights(graph, scales, batches, scheme, progress)
    if scheme.block_reconstruction:
        rounded = reconstruct(graph, rounded, scales, batches, scheme, progress)
    return rounded.to("cpu"), scales
