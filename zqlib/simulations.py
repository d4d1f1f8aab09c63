"""Systems to compare calibration with that no `.zq` file holds: they are made as they hear."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zqlib.integer.backends import cpu
from zqlib.models import CTCModel
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.lower import lower, quantize_weight
from zqlib.quantization.nodes import FloatConv, FloatConv2d, FloatOperator
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import round_features
from zqlib.recognition import Engine

__all__ = ["SIMULATIONS", "DynamicRecogniser", "Simulation", "WeightsOnlyRecogniser"]


class Simulation:
    """A recogniser that starts from the graph of an integer program.

    Args:
        model: the float model.
        batches: what the program is recentred and equalized and its weights are rounded on:
            features (batch, n_mels, frames) float32 and lengths (batch,) int64.
        scheme: bits and methods.

    Attributes:
        engine: what computes, as in `zqlib.recognition.Recogniser`.
        caveat: what a reader of its results must know.
    """

    engine: ClassVar[Engine]
    caveat: ClassVar[str]

    def __init__(
        self, model: CTCModel, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
    ) -> None:
        self.name, self.front_end, self.labels = model.name, model.front_end, model.labels
        self.graph, self.scales = prepare(model.network, batches, scheme)
        self.scheme = scheme

    def tokens(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `zqlib.recognition.Recogniser.tokens`."""
        raise NotImplementedError


class DynamicRecogniser(Simulation):
    """The authors' dynamic mode: every utterance is calibrated on itself, then heard in integers.

    See `Simulation` for the arguments.

    Raises:
        InputError: the kernels of the engine `cpu` cannot be compiled, or something is zero
            throughout an utterance.
    """

    engine = "cpu"
    caveat = (
        "dynamic: every utterance sets its own activation ranges; it looks at the test data and is "
        "no zero-shot result"
    )

    def tokens(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `zqlib.recognition.Recogniser.tokens`."""
        pairs = zip(features, lengths.tolist(), strict=True)
        tokens = [self._hear(feature[None, :, :length]) for feature, length in pairs]
        return pad_sequence(tokens, batch_first=True), torch.tensor([len(row) for row in tokens])

    def _hear(self, features: Tensor) -> Tensor:
        """(1, n_mels, frames) float32, no frame of it padding, to token ids (frames',)."""
        lengths = torch.tensor([features.shape[2]])
        scales = calibrate(self.graph, [(features, lengths)], self.scheme)
        program = lower(self.graph, scales, self.scheme)
        quantized = round_features(program, scales[self.graph.input], features)
        output = cpu.Executor(program, torch.get_num_threads()).run(quantized, lengths)
        return output.tokens[0, : int(output.lengths[0])]


class WeightsOnlyRecogniser(Simulation):
    """The program's weights in a float graph: what activations without any error would reach.

    See `Simulation` for the arguments.
    """

    engine = "float"
    caveat = "weights-only: a float simulation; weights are rounded, activations are not"

    def __init__(
        self, model: CTCModel, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
    ) -> None:
        super().__init__(model, batches, scheme)
        operators = tuple(map(self._rounded, self.graph.operators))
        self.graph = replace(self.graph, operators=operators)

    def tokens(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `zqlib.recognition.Recogniser.tokens`."""
        logits, lengths = self.graph.run(features, lengths)
        return logits.argmax(1), lengths

    def _rounded(self, operator: FloatOperator) -> FloatOperator:
        """A convolution with the values that its integer weights and biases stand for."""
        if not isinstance(operator, FloatConv | FloatConv2d):
            return operator
        step = self.scales[operator.input]
        weight, bias, scale = quantize_weight(operator, step, self.scheme)
        if bias is not None:
            operator = replace(operator, bias=(bias * (step * scale)).float())
        column = scale.view(-1, *[1] * (weight.ndim - 1))
        return replace(operator, weight=(weight * column).float())


SIMULATIONS: Mapping[str, type[Simulation]] = {
    "dynamic": DynamicRecogniser,
    "weights-only": WeightsOnlyRecogniser,
}
"""By the name that stands for a calibration in profiles and records."""
