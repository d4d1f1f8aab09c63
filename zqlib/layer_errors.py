"""Where an integer program departs from the float model, tensor by tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zqlib.integer import reference
from zqlib.models import CTCModel
from zqlib.quantization.calibrate import activation_levels, calibrate, zero_points
from zqlib.quantization.equalize import equalize
from zqlib.quantization.fold import fold
from zqlib.quantization.lower import logits_step, lower
from zqlib.quantization.recentre import recentre
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weights import quantize_weights
from zqlib.quantized_model import round_features

__all__ = ["TensorError", "tensor_errors"]


@dataclass(frozen=True)
class TensorError:
    """The error of one quantized tensor, over all valid frames of some utterances.

    A ratio is 10 log10 of the sum of squares of the float values, about the mean of the utterance,
    over that of the differences.

    Attributes:
        name: of the tensor; `logits` for the program's output.
        total_snr_db: against the float model: all that has piled up from the features to here.
        local_snr_db: against float operators, with float weights, that read what the integer
            program has read: what was lost at this tensor alone, by rounding and clipping it and by
            rounding the weights before it.
        clipped_pct: share of values beyond the ends of the range.
    """

    name: str
    total_snr_db: float
    local_snr_db: float
    clipped_pct: float


class _Sums:
    """Squares, counted up utterance by utterance."""

    def __init__(self) -> None:
        self.signal = self.total = self.local = 0.0
        self.values = self.clipped = 0

    def error(self, name: str) -> TensorError:
        def snr_db(noise: float) -> float:
            return 10 * math.log10(max(self.signal, 1e-30) / max(noise, 1e-30))

        clipped_pct = 100 * self.clipped / self.values
        return TensorError(name, snr_db(self.total), snr_db(self.local), clipped_pct)


def tensor_errors(
    model: CTCModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    features: Sequence[Tensor],
) -> list[TensorError]:
    """Quantize a model and compare it with itself, in order of execution.

    Args:
        model: the float model.
        batches: calibration features and lengths, as in `zqlib.quantized_model.quantize`.
        scheme: bits and range method.
        features: of the utterances to compare on, (n_mels, frames_i) float32 each.

    Raises:
        InputError: calibration saw only zeros somewhere.
        LoweringError: an accumulator could overflow.
    """
    graph = recentre(fold(model.network, scheme), batches, scheme)
    graph = equalize(graph, batches, scheme)
    scales = calibrate(graph, batches, scheme)
    rounded = quantize_weights(graph, scales, batches, scheme)
    program = lower(rounded, scales, scheme)
    levels, zeros = activation_levels(graph, scheme), zero_points(graph, scales, scheme)
    step = {**scales, graph.logits: logits_step(rounded, scales, scheme)}
    sums = {name: _Sums() for name in step}
    for feature in features:
        x, lengths = feature[None], torch.tensor([feature.shape[1]])
        quantized = round_features(program, scales[graph.input], x)
        integers = {graph.input: quantized}
        reference.run(program, quantized, lengths, integers.__setitem__)
        integers[graph.logits] = integers[program.logits]
        real = {
            name: (integers[name].to(torch.int32) - zeros.get(name, 0)) * torch.tensor(step[name])
            for name in step
        }
        pure, local = dict[str, Tensor](), dict[str, Tensor]()
        logits, _ = graph.run(x, lengths, pure.__setitem__)
        pure[graph.logits] = logits[0]
        read = {name: real[name] for name in scales}
        logits, _ = graph.run(x, lengths, local.__setitem__, read)
        local[graph.logits] = logits[0]
        for name, value in real.items():
            count = sums[name]
            true = pure[name].double()
            count.signal += float((true - true.mean()).square().sum())
            count.total += float((value[0] - pure[name]).double().square().sum())
            count.local += float((value[0] - local[name]).double().square().sum())
            count.values += value.numel()
            if name in levels:
                low, high = levels[name]
                steps = torch.round(local[name] / step[name]) + zeros.get(name, 0)
                count.clipped += int(((steps < low) | (steps > high)).sum())
    return [count.error(name) for name, count in sums.items()]
