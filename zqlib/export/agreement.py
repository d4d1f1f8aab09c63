"""The same utterances through every form of a model: how far do they agree?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import onnx
import torch
from torch import Tensor
from tqdm import tqdm

from zqlib.audio import audio_features
from zqlib.corpora.manifest import Utterance
from zqlib.errors import InputError
from zqlib.evaluation import Hypothesis, best_path, greedy_ctc, word_error_rate
from zqlib.export.engine import Profile
from zqlib.export.inspection import LayerCount, count_layers
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_integer import export_integer
from zqlib.export.onnx_qdq import export_qdq
from zqlib.export.openvino import OpenVinoModel
from zqlib.export.runtime import open_session
from zqlib.files import user_cache
from zqlib.integer import reference
from zqlib.integer.backends import cpu
from zqlib.integer.program import Program
from zqlib.models import CTCModel
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import logits_step, lower
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import round_features

__all__ = ["Agreement", "ENGINES", "agreement", "installed_engines"]

ENGINES = {
    "reference": "the integer program in torch, which the others are compared with",
    "cpu": "the integer program on compiled kernels",
    "onnx-integer": "ONNX in integers only, in ONNX Runtime",
    "onnx-qdq": "ONNX with Q/DQ, in ONNX Runtime",
    "openvino-qdq": "ONNX with Q/DQ, in OpenVINO",
    "tensorrt-qdq": "ONNX with Q/DQ (s8s8), as an engine of TensorRT",
    "onnx-float": "ONNX in float32, in ONNX Runtime",
    "float": "the float model in torch",
}

Scores = Callable[[Tensor, Tensor], Tensor]
"""Features (1, mels, frames) float32 and length (1,) to log-probabilities (frames', classes)."""


@dataclass(frozen=True)
class Agreement:
    """One form of a model against the integer program on the `reference` backend.

    Attributes:
        engine: a key of `ENGINES`.
        wer_pct, wer_ci95: word error rate with its bootstrap interval, per cent.
        same_tokens_pct: utterances with the reference's tokens after merging repeats.
        max_difference: largest difference of a log-probability from the reference's.
        max_difference_steps: the same in steps of the program's logits.
        layers: how the engine runs the layers; None where it was not asked.
    """

    engine: str
    wer_pct: float
    wer_ci95: tuple[float, float]
    same_tokens_pct: float
    max_difference: float
    max_difference_steps: float
    layers: LayerCount | None


def installed_engines() -> tuple[str, ...]:
    """All of `ENGINES`, without TensorRT where it is not installed."""
    return tuple(
        name for name in ENGINES if not name.startswith("tensorrt") or find_spec("tensorrt")
    )


def agreement(
    model: CTCModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    utterances: Sequence[Utterance],
    engines: Sequence[str] | None = None,
    progress: bool = True,
) -> list[Agreement]:
    """Compare forms of a model, from one calibration.

    Args:
        model: the float model.
        batches: calibration features and lengths, as in `zqlib.quantized_model.quantize`.
        scheme: of 8-bit activations; its `unsigned_relu` chooses the flavour of Q/DQ.
        utterances: what to compare on, one at a time.
        engines: keys of `ENGINES`; None for `installed_engines()`. The reference always runs.
        progress: show a bar on standard error.

    Raises:
        InputError: bad audio, no utterance, an unknown engine, a scheme that Q/DQ cannot hold, or
            an engine is missing.
        LoweringError: an accumulator could overflow.
    """
    names = list(dict.fromkeys(["reference", *(engines or installed_engines())]))
    if unknown := sorted(set(names) - ENGINES.keys()):
        raise InputError(f"The engine {unknown[0]!r} is unknown; use {', '.join(ENGINES)}.")
    made = _Prepared.of(model, batches, scheme)
    forms = {name: _form(name, made) for name in names}
    heard: dict[str, list[tuple[list[int], float]]] = {name: [] for name in names}
    for utterance in tqdm(utterances, desc="compare", unit="utt", disable=not progress):
        features = audio_features(utterance.audio_path, model.front_end)[None]
        lengths = torch.tensor([features.shape[2]])
        expected = forms["reference"].scores(features, lengths)
        for name, form in forms.items():
            actual = expected if name == "reference" else form.scores(features, lengths)
            difference = float((actual - expected).abs().max())
            heard[name].append((actual.argmax(-1).tolist(), difference))
    labels = model.labels
    spoken = [[best_path(tokens, len(labels)) for tokens, _ in heard[name]] for name in names]
    rows = []
    for name, paths in zip(names, spoken, strict=True):
        score = word_error_rate(
            [
                Hypothesis(str(utterance.audio_path), utterance.text, greedy_ctc(tokens, labels))
                for utterance, (tokens, _) in zip(utterances, heard[name], strict=True)
            ]
        )
        same = [path == expected for path, expected in zip(paths, spoken[0], strict=True)]
        largest = max(difference for _, difference in heard[name])
        rows.append(
            Agreement(
                engine=name,
                wer_pct=score.wer_pct,
                wer_ci95=score.ci95,
                same_tokens_pct=100 * sum(same) / len(same),
                max_difference=largest,
                max_difference_steps=largest / made.step,
                layers=forms[name].layers,
            )
        )
    return rows


@dataclass(frozen=True)
class _Prepared:
    """A model, calibrated once.

    Attributes:
        graph: with the weights of the scheme's methods.
        step: real value of one step of the program's logits.
    """

    model: CTCModel
    batches: Sequence[tuple[Tensor, Tensor]]
    scheme: QuantScheme
    graph: FloatGraph
    scales: dict[str, float]
    program: Program
    step: float

    @classmethod
    def of(
        cls, model: CTCModel, batches: Sequence[tuple[Tensor, Tensor]], scheme: QuantScheme
    ) -> "_Prepared":
        graph, scales = prepare(model.network, batches, scheme, q_dq=True)
        model.network.cpu()  # where all forms of it are compared
        program = lower(graph, scales, scheme)
        step = logits_step(graph, scales, scheme)
        return cls(model, batches, scheme, graph, scales, program, step)

    @cached_property
    def qdq(self) -> onnx.ModelProto:
        return export_qdq(self.graph, self.scales, self.scheme)

    def quantize(self, features: Tensor) -> Tensor:
        return round_features(self.program, self.scales[self.graph.input], features)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Of the logits (1, classes, frames) of one utterance."""
        return (self.step * logits[0].t().double()).log_softmax(-1)


@dataclass(frozen=True)
class _Form:
    scores: Scores
    layers: LayerCount | None = None


def _form(name: str, made: _Prepared) -> _Form:
    match name:
        case "float":
            return _Form(partial(_run_network, made))
        case "reference":
            return _Form(partial(_run_program, made, partial(reference.run, made.program)))
        case "cpu":
            executor = cpu.Executor(made.program, torch.get_num_threads())
            return _Form(partial(_run_program, made, executor.run))
        case "onnx-integer":
            file = export_integer(made.program)
            return _Form(partial(_run_integers, made, open_session(file)), count_layers(file))
        case "onnx-float":
            file = export_float(fold(made.model.network, made.scheme))
            return _Form(partial(_run_onnx, open_session(file)), count_layers(file))
        case "onnx-qdq":
            return _Form(partial(_run_onnx, open_session(made.qdq)), count_layers(made.qdq))
        case "openvino-qdq":
            compiled = OpenVinoModel(made.qdq)
            return _Form(partial(_run_openvino, compiled), compiled.count_layers())
        case _:
            return _Form(_engine_of_tensorrt(made))


def _run_network(made: _Prepared, features: Tensor, lengths: Tensor) -> Tensor:
    with torch.no_grad():
        log_probs: Tensor = made.model.network(features, lengths)[0]
    return log_probs[0].double()


def _run_program(
    made: _Prepared,
    run: Callable[[Tensor, Tensor], reference.ProgramOutput],
    features: Tensor,
    lengths: Tensor,
) -> Tensor:
    return made.log_probs(run(made.quantize(features), lengths).logits)


def _run_integers(made: _Prepared, session: Any, features: Tensor, lengths: Tensor) -> Tensor:
    inputs = {"features": made.quantize(features).numpy(), "length": lengths.numpy()}
    (logits,) = session.run(["logits"], inputs)
    return made.log_probs(torch.from_numpy(logits))


def _run_onnx(session: Any, features: Tensor, lengths: Tensor) -> Tensor:
    inputs = {"audio_signal": features.numpy(), "length": lengths.numpy()}
    (log_probs,) = session.run(["logprobs"], inputs)
    return torch.from_numpy(log_probs)[0].double()


def _run_openvino(compiled: OpenVinoModel, features: Tensor, lengths: Tensor) -> Tensor:
    inputs = {"audio_signal": features.numpy(), "length": lengths.numpy()}
    return torch.from_numpy(compiled.run(inputs)["logprobs"])[0].double()


def _engine_of_tensorrt(made: _Prepared) -> Scores:
    """An INT8 engine of signed activations, calibrated on the same batches."""
    from zqlib.export.tensorrt import TensorRTRunner, build_engine

    signed = replace(made.scheme, unsigned_relu=False, offset_swish=False)
    again = _Prepared.of(made.model, made.batches, signed)
    runner = TensorRTRunner(*build_engine(again.qdq, "int8", Profile(), user_cache("tensorrt")))

    def scores(features: Tensor, lengths: Tensor) -> Tensor:
        return runner(features, lengths)[0][0].double().cpu()

    return scores
