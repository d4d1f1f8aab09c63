"""The same utterances through every form of a model: how far do they agree?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx
import torch
from torch import Tensor
from tqdm import tqdm

from zqlib.audio import audio_features
from zqlib.corpora.manifest import Utterance
from zqlib.evaluation import Hypothesis, best_path, greedy_ctc, word_error_rate
from zqlib.export.inspection import LayerCount, count_layers
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_integer import export_integer
from zqlib.export.onnx_qdq import export_qdq
from zqlib.export.runtime import open_session
from zqlib.integer import reference
from zqlib.models import CTCModel
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.lower import logits_step, lower
from zqlib.quantization.rounding import round_convolutions
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import round_features

__all__ = ["Agreement", "agreement"]

Scores = Callable[[Tensor, Tensor], Tensor]
"""Features (1, mels, frames) float32 and length (1,) to log-probabilities (frames', classes)."""


@dataclass(frozen=True)
class Agreement:
    """One form of a model against the integer program on the `reference` backend.

    Attributes:
        engine: `float` (torch), `reference`, and in ONNX Runtime `onnx-float`, `onnx-qdq` and
            `onnx-integer`.
        wer_pct, wer_ci95: word error rate with its bootstrap interval, per cent.
        same_tokens_pct: utterances with the reference's tokens after merging repeats.
        max_difference: largest difference of a log-probability from the reference's, in steps of
            the program's logits.
        layers: how ONNX Runtime runs the layers; None in torch.
    """

    engine: str
    wer_pct: float
    wer_ci95: tuple[float, float]
    same_tokens_pct: float
    max_difference: float
    layers: LayerCount | None


def agreement(
    model: CTCModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    utterances: Sequence[Utterance],
    progress: bool = True,
) -> list[Agreement]:
    """Compare all forms of a model, from one calibration.

    Args:
        model: the float model.
        batches: calibration features and lengths, as in `zqlib.quantized_model.quantize`.
        scheme: of 8-bit activations; its `unsigned_relu` chooses the flavour of Q/DQ.
        utterances: what to compare on, one at a time.
        progress: show a bar on standard error.

    Raises:
        InputError: bad audio, no utterance, a scheme that Q/DQ cannot hold, or ONNX Runtime is
            missing.
        LoweringError: an accumulator could overflow.
    """
    graph = fold(model.network, scheme)
    scales = calibrate(round_convolutions(graph), batches, scheme)
    program = lower(graph, scales, scheme)
    step = logits_step(graph, scales, scheme)
    quantize = partial(round_features, program, scales[graph.input])

    def of_reference(x: Tensor, lengths: Tensor) -> Tensor:
        logits = reference.run(program, quantize(x), lengths).logits
        return (step * logits[0].t().double()).log_softmax(-1)

    def of_network(x: Tensor, lengths: Tensor) -> Tensor:
        with torch.no_grad():
            log_probs: Tensor = model.network(x, lengths)[0]
        return log_probs[0].double()

    def of_integers(file: onnx.ModelProto) -> Scores:
        session = open_session(file)

        def scores(x: Tensor, lengths: Tensor) -> Tensor:
            inputs = {"features": quantize(x).numpy(), "length": lengths.numpy()}
            (logits,) = session.run(["logits"], inputs)
            return (step * torch.from_numpy(logits)[0].t().double()).log_softmax(-1)

        return scores

    files = {
        "onnx-float": export_float(graph),
        "onnx-qdq": export_qdq(graph, scales, scheme),
        "onnx-integer": export_integer(program),
    }
    engines = {"reference": of_reference, "float": of_network} | {
        name: of_integers(file) if name == "onnx-integer" else _of_floats(file)
        for name, file in files.items()
    }
    heard: dict[str, list[tuple[list[int], float]]] = {name: [] for name in engines}
    for utterance in tqdm(utterances, desc="compare", unit="utt", disable=not progress):
        features = audio_features(utterance.audio_path, model.front_end)[None]
        lengths = torch.tensor([features.shape[2]])
        expected = of_reference(features, lengths)
        for name, engine in engines.items():
            actual = expected if engine is of_reference else engine(features, lengths)
            difference = float((actual - expected).abs().max()) / step
            heard[name].append((actual.argmax(-1).tolist(), difference))
    return [_compare(name, heard, model.labels, utterances, files.get(name)) for name in engines]


def _of_floats(file: onnx.ModelProto) -> Scores:
    session = open_session(file)

    def scores(x: Tensor, lengths: Tensor) -> Tensor:
        inputs = {"audio_signal": x.numpy(), "length": lengths.numpy()}
        (logprobs,) = session.run(["logprobs"], inputs)
        return torch.from_numpy(logprobs)[0].double()

    return scores


def _compare(
    name: str,
    heard: dict[str, list[tuple[list[int], float]]],
    labels: tuple[str, ...],
    utterances: Sequence[Utterance],
    file: onnx.ModelProto | None,
) -> Agreement:
    score = word_error_rate(
        [
            Hypothesis(str(utterance.audio_path), utterance.text, greedy_ctc(tokens, labels))
            for utterance, (tokens, _) in zip(utterances, heard[name], strict=True)
        ]
    )
    same = [
        best_path(tokens, len(labels)) == best_path(expected, len(labels))
        for (tokens, _), (expected, _) in zip(heard[name], heard["reference"], strict=True)
    ]
    return Agreement(
        engine=name,
        wer_pct=score.wer_pct,
        wer_ci95=score.ci95,
        same_tokens_pct=100 * sum(same) / len(same),
        max_difference=max(difference for _, difference in heard[name]),
        layers=count_layers(file) if file else None,
    )
