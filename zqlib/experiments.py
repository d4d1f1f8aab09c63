"""The experiments that the notebooks show: synthesis, what it costs, and word error rates.

Each function runs what is missing, keeps intermediate results below `work/` under names made of
everything that they depend on (weights, data, settings, the sources of zqlib), and writes records
below `results/<profile>/`. Interrupted, it goes on where it was.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zqlib.calibration_data import calibration_batches
from zqlib.errors import InputError
from zqlib.files import read_json, sha256_file, write_json
from zqlib.models import CTCModel, load_model
from zqlib.parameters import Parameters
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import load_quantized, quantize
from zqlib.recognition import FloatRecogniser, IntegerRecogniser
from zqlib.results import Record, commit, device_name, provenance
from zqlib.scoring import System, cache_key, data_digest, score_systems
from zqlib.synthesis import (
    SynthesisConfig,
    SyntheticBatch,
    as_calibration,
    layer_statistics,
    synthesize,
)

__all__ = ["SynthesisResult", "budget_experiment", "synthesis_experiment", "wer_experiment"]


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


@dataclass(frozen=True)
class _Recipe:
    """What makes an integer program of a float model; `recordings` only for calibration `real`."""

    scheme: QuantScheme
    calibration: str
    synthesis: SynthesisConfig
    recordings: Path | None = None


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
    root = parameters.root
    records: list[Record] = []
    for source in profile.models:
        path = source.resolve(root)
        model = load_model(path)
        systems = [_float_system("wer", model)]
        for scheme in profile.quant_schemes():
            for calibration in profile.calibrations:
                recordings = profile.resolve_calibration(root) if calibration == "real" else None
                recipe = _Recipe(scheme, calibration, profile.synthesis, recordings)
                program = _program(root, model, path, recipe)
                systems.append(_integer_system("wer", program, recipe))
        for split in profile.corpora:
            if not source.corpora or split.corpus in source.corpora:
                records += score_systems(root, profile, source, model, split, systems)
    if not records:
        raise InputError("No model is to be scored on any of these splits; choose others.")
    return records


def budget_experiment(parameters: Parameters) -> list[Record]:
    """What other settings of the synthesis cost and reach: the profile's first model and split.

    The time of a synthesis is measured when it runs, with nothing taken from a cache, so these
    records, unlike the others, are not the same bytes twice.
    """
    profile = parameters.load_profile()
    root, source, split = parameters.root, profile.models[0], profile.corpora[0]
    path = source.resolve(root)
    model = load_model(path)
    scheme = profile.quant_schemes()[0]
    systems = [_float_system("budget", model)]
    for config in profile.budgets:
        recipe = _Recipe(scheme, "synthetic", config)
        cost_path = (
            root / "work" / "budgets" / f"{cache_key(model=sha256_file(path), **vars(config))}.json"
        )
        if not cost_path.is_file():
            start_s = time.perf_counter()
            batches = synthesize(model.network, model.front_end.config.n_mels, config)
            cost = {
                "synthesis_s": round(time.perf_counter() - start_s, 1),
                "loss_initial": float(batches[0].loss[0].sum()),
                "loss_final": float(batches[0].loss[-1].sum()),
            }
            program = _program_path(root, model, path, recipe)
            details = {"kind": "synthetic", "synthesis": config.to_json()}
            quantize(model, as_calibration(batches), scheme, details).save(program)
            write_json(cost_path, cost)
        program = _program(root, model, path, recipe)
        variant = (
            f"{config.batches}x{config.batch_size}x{config.frames}-{config.steps}steps"
            f"-lr{config.learning_rate}-{config.initialisation}-{config.deviation}"
        )
        system = _integer_system("budget", program, recipe)
        systems.append(replace(system, variant=variant, details=read_json(cost_path)))
    return list(score_systems(root, profile, source, model, split, systems))


def _float_system(experiment: str, model: CTCModel) -> System:
    return System(experiment, "float", "none", FloatRecogniser(model), model.size_mb)


def _integer_system(experiment: str, program: Path, recipe: _Recipe) -> System:
    recogniser = IntegerRecogniser(load_quantized(program))
    size_mb = program.stat().st_size / 1e6
    return System(experiment, recipe.scheme.name, recipe.calibration, recogniser, size_mb)


def _program_path(root: Path, model: CTCModel, path: Path, recipe: _Recipe) -> Path:
    made_of = {
        "model": sha256_file(path),
        "scheme": recipe.scheme.to_json(),
        "calibration": recipe.calibration,
        "synthesis": recipe.synthesis.to_json(),
    }
    if recipe.recordings:
        made_of["recordings"] = data_digest(recipe.recordings)
    name = f"{model.name}-{recipe.scheme.name}-{recipe.calibration}-{cache_key(**made_of)}.zq"
    return root / "work" / "programs" / name


def _program(root: Path, model: CTCModel, path: Path, recipe: _Recipe) -> Path:
    """The quantized model's file, made when it is missing."""
    program = _program_path(root, model, path, recipe)
    if not program.is_file():
        cache = root / "work" / "synthesis"
        data, details = calibration_batches(
            model, recipe.calibration, recipe.synthesis, recipe.recordings, cache
        )
        quantize(model, data, recipe.scheme, details).save(program)
    return program
