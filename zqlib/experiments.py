"""The experiments that the notebooks show: synthesis, and word error rates.

Each function runs what is missing, keeps intermediate results below `work/` under names made of
everything that they depend on (weights, data, settings, the sources of zqlib), and writes records
below `results/<profile>/`. Interrupted, it goes on where it was.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zqlib.calibration_data import calibration_batches
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.evaluation import Hypothesis, paired_difference, word_error_rate, write_hypotheses
from zqlib.files import sha256_file, write_json
from zqlib.models import CTCModel, load_model
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit, ModelSource, Profile
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import load_quantized, quantize
from zqlib.recognition import (
    FloatRecogniser,
    IntegerRecogniser,
    Recogniser,
    recognise_manifest,
)
from zqlib.results import Record, commit, device_name, provenance, write_record
from zqlib.synthesis import (
    SyntheticBatch,
    layer_statistics,
    synthesize,
)

__all__ = [
    "SynthesisResult",
    "data_digest",
    "source_digest",
    "synthesis_experiment",
    "wer_experiment",
]


@dataclass(frozen=True)
class SynthesisResult:
    """A synthetic set and what the synthesis page shows of it.

    Attributes:
        model: the float model.
        batches: the set.
        before, after: mean and variance at the input of every BatchNorm, by layer, for the first
            batch's initial noise and for the batch itself.
        record: what was written to `results/`.
    """

    model: CTCModel
    batches: list[SyntheticBatch]
    before: dict[str, tuple[Tensor, Tensor]]
    after: dict[str, tuple[Tensor, Tensor]]
    record: dict[str, Any]


@cache
def source_digest() -> str:
    """SHA-256 over the sources of zqlib: a result of other code is not taken for this one's."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent.name != "training" and path.name != "cli.py":
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def data_digest(manifest: Path) -> str:
    """SHA-256 over a manifest's transcripts and the bytes of its audio."""
    digest = hashlib.sha256()
    for utterance in read_manifest(manifest):
        digest.update(utterance.text.encode())
        if not utterance.audio_path.is_file():
            raise InputError(f"{utterance.audio_path}, named by {manifest}, does not exist.")
        digest.update(utterance.audio_path.read_bytes())
    return digest.hexdigest()


def _key(**parts: Any) -> str:
    text = json.dumps({**parts, "source": source_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def synthesis_experiment(parameters: Parameters) -> Iterator[SynthesisResult]:
    """Synthesise data for each model of a profile and record how the statistics came closer."""
    profile = parameters.load_profile()
    for source in profile.models:
        path = source.resolve(parameters.root)
        model = load_model(path)
        n_mels = model.front_end.config.n_mels
        config = profile.synthesis
        batches = synthesize(model.network, n_mels, config, parameters.root / "work" / "synthesis")
        # a synthesis of no step is the initial noise
        untouched = replace(config, batches=1, steps=0)
        initial = synthesize(model.network, n_mels, untouched, progress=False)
        first, last = batches[0].loss[0], batches[0].loss[-1]
        before = layer_statistics(model.network, initial[0].features, initial[0].lengths)
        after = layer_statistics(model.network, batches[0].features, batches[0].lengths)
        record = {
            "experiment": "synthesis",
            "profile": profile.name,
            "model": model.name,
            "family": model.family,
            "caveats": list(source.caveats),
            "config": config.to_json(),
            "loss": [batch.loss.sum(1).tolist() for batch in batches],
            "layers": {
                name: {"initial": float(first[i]), "final": float(last[i])}
                for i, name in enumerate(before)
            },
            "device": device_name(),
            "commit": commit(parameters.root),
            "provenance": provenance(model_sha256=sha256_file(path)),
        }
        write_json(
            parameters.root / "results" / profile.name / "synthesis" / f"{model.name}.json", record
        )
        yield SynthesisResult(model, batches, before, after, record)


def wer_experiment(parameters: Parameters) -> list[Record]:
    """Score float and integer models on every split of a profile; one record each."""
    profile = parameters.load_profile()
    records: list[Record] = []
    for source in profile.models:
        path = source.resolve(parameters.root)
        model = load_model(path)
        float_size_mb = 4e-6 * sum(t.numel() for t in model.network.state_dict().values())
        systems: list[tuple[str, str, Recogniser, float]] = [
            ("float", "none", FloatRecogniser(model), float_size_mb)
        ]
        for scheme in profile.quant_schemes():
            for calibration in profile.calibrations:
                program = _program(parameters.root, model, path, profile, scheme, calibration)
                size_mb = program.stat().st_size / 1e6
                recogniser = IntegerRecogniser(load_quantized(program))
                systems.append((scheme.name, calibration, recogniser, size_mb))
        for split in profile.corpora:
            if not source.corpora or split.corpus in source.corpora:
                records += _score(parameters.root, profile, source, model, split, systems)
    return records


def _program(
    root: Path, model: CTCModel, path: Path, profile: Profile, scheme: QuantScheme, calibration: str
) -> Path:
    """The quantized model's file, made when it is missing."""
    key = _key(
        model=sha256_file(path),
        scheme=scheme.to_json(),
        calibration=calibration,
        synthesis=profile.synthesis.to_json(),
    )
    program = root / "work" / "programs" / f"{model.name}-{scheme.name}-{calibration}-{key}.zq"
    if not program.is_file():
        data, details = calibration_batches(
            model, calibration, profile.synthesis, cache=root / "work" / "synthesis"
        )
        quantize(model, data, scheme, details).save(program)
    return program


def _score(
    root: Path,
    profile: Profile,
    source: ModelSource,
    model: CTCModel,
    split: CorpusSplit,
    systems: list[tuple[str, str, Recogniser, float]],
) -> Iterator[Record]:
    manifest = split.resolve(root)
    utterances = read_manifest(manifest)
    data_sha256 = data_digest(manifest)
    model_sha256 = sha256_file(source.resolve(root))
    baseline: list[Hypothesis] = []
    for scheme, calibration, recogniser, size_mb in systems:
        settings: dict[str, Any] = {"model_sha256": model_sha256, "data_sha256": data_sha256}
        if isinstance(recogniser, IntegerRecogniser):
            settings["scheme"] = recogniser.model.scheme.to_json()
            settings["calibration"] = recogniser.model.calibration
        key = _key(engine=recogniser.engine, **settings)
        name = "_".join(
            [model.name, scheme, calibration, recogniser.engine, split.corpus, split.split]
        )
        print(f"{model.name}, {scheme} ({calibration}) on {split.corpus} {split.split}", flush=True)
        hypotheses = recognise_manifest(
            recogniser, manifest, partial=root / "work" / "hypotheses" / f"{name}-{key}.jsonl"
        )
        stored = Path("hypotheses") / f"{name}.jsonl"
        write_hypotheses(root / "results" / profile.name / stored, hypotheses)
        baseline = baseline or hypotheses
        score = word_error_rate(hypotheses)
        delta = None if scheme == "float" else paired_difference(baseline, hypotheses)
        record = Record(
            profile=profile.name,
            experiment="wer",
            model=model.name,
            family=model.family,
            scheme=scheme,
            calibration=calibration,
            engine=recogniser.engine,
            corpus=split.corpus,
            split=split.split,
            utterances=score.utterances,
            words=score.words,
            audio_s=round(sum(u.duration_s for u in utterances), 2),
            wer_pct=score.wer_pct,
            wer_ci95=score.ci95,
            delta_wer_pct=delta.delta_wer_pct if delta else None,
            delta_ci95=delta.ci95 if delta else None,
            size_mb=size_mb,
            caveats=(*split.all_caveats(utterances), *source.caveats),
            hypotheses=stored.as_posix(),
            device=device_name(),
            commit=commit(root),
            provenance=provenance(**settings),
        )
        write_record(root / "results", record)
        yield record
