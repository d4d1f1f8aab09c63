"""The experiments that the notebooks show: synthesis, word error rates, ablations, layer errors.

Each function runs what is missing, keeps intermediate results below `work/` under names made of
everything that they depend on (weights, data, settings, the sources of zqlib), and writes records
below `results/<profile>/`. Interrupted, it goes on where it was.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zqlib.audio import audio_features
from zqlib.batch_statistics import layer_statistics
from zqlib.calibration_data import calibration_batches
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.files import read_json, sha256_file, write_json
from zqlib.layer_errors import tensor_errors
from zqlib.models import CTCModel, load_model
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit, ModelSource, Profile
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import load_quantized, quantize
from zqlib.recognition import Engine, FloatRecogniser, IntegerRecogniser
from zqlib.results import Record, commit, device_name, provenance
from zqlib.scoring import System, cache_key, data_digest, score_systems
from zqlib.synthesis import (
    SynthesisConfig,
    SyntheticBatch,
    as_calibration,
    synthesize,
)

__all__ = [
    "SynthesisResult",
    "ablation_experiment",
    "budget_experiment",
    "layers_experiment",
    "synthesis_experiment",
    "wer_experiment",
]

_COMPARED = 8  # utterances whose tensors are compared one by one


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
    usual = profile.calibrations[0]
    for source in profile.models:
        path = source.resolve(root)
        model = load_model(path)
        systems = [_float_system("wer", model)]
        first, *others = profile.quant_schemes(model.family)
        compared = [(first, calibration) for calibration in profile.calibrations]
        for scheme, calibration in compared + [(other, usual) for other in others]:
            recordings = profile.resolve_calibration(root) if calibration == "real" else None
            recipe = _Recipe(scheme, calibration, profile.synthesis, recordings)
            program = _program(root, model, path, recipe)
            systems.append(_integer_system("wer", program, recipe))
        records += _score_on_all_splits(root, profile, source, model, systems)
    return _some(records)


def ablation_experiment(parameters: Parameters) -> list[Record]:
    """Score variations of a profile's first scheme, beside it and the float model.

    They are many, so they run on the backend `cpu`, whose integers are those of the reference.
    """
    profile = parameters.load_profile()
    root = parameters.root
    records: list[Record] = []
    for source in profile.models:
        path = source.resolve(root)
        model = load_model(path)
        systems = [_float_system("ablation", model)]
        first = profile.quant_schemes(model.family)[0]
        variants = {first: ""}  # an ablation that changes nothing for a family adds nothing
        for ablation in profile.ablations:
            if model.family in (ablation.families or (model.family,)):
                variants.setdefault(ablation.apply(first), ablation.name)
        for scheme, name in variants.items():
            recipe = _Recipe(scheme, "synthetic", profile.synthesis)
            program = _program(root, model, path, recipe)
            system = _integer_system("ablation", program, recipe, "cpu")
            systems.append(replace(system, variant=name))
        records += _score_on_all_splits(root, profile, source, model, systems)
    return _some(records)


def layers_experiment(parameters: Parameters) -> Iterator[dict[str, Any]]:
    """Compare the integer programs of each model with the float model, tensor by tensor.

    Yields:
        The record of each model: `tensors` maps the name of a scheme to the errors of its tensors,
        in order of execution, each with the fields of `zqlib.layer_errors.TensorError`.
    """
    profile = parameters.load_profile()
    root = parameters.root
    for source in profile.models:
        split = next(_splits(profile, source), None)
        if split is None:
            continue
        path, manifest = source.resolve(root), split.resolve(root)
        model = load_model(path)
        utterances = read_manifest(manifest)[:_COMPARED]
        features = [audio_features(u.audio_path, model.front_end) for u in utterances]
        data, details = calibration_batches(
            model, "synthetic", profile.synthesis, cache=root / "work" / "synthesis"
        )
        record = {
            "experiment": "layers",
            "profile": profile.name,
            "model": model.name,
            "family": model.family,
            "corpus": split.corpus,
            "split": split.split,
            "utterances": len(utterances),
            "caveats": [*split.all_caveats(utterances), *source.caveats],
            "calibration": details,
            "tensors": {
                scheme.name: [asdict(e) for e in tensor_errors(model, data, scheme, features)]
                for scheme in profile.quant_schemes(model.family)
            },
            "device": device_name(),
            "commit": commit(root),
            "provenance": provenance(
                model_sha256=sha256_file(path), data_sha256=data_digest(manifest)
            ),
        }
        write_json(root / "results" / profile.name / "layers" / f"{model.name}.json", record)
        yield record


def budget_experiment(parameters: Parameters) -> list[Record]:
    """What other settings of the synthesis cost and reach: the profile's first model and split.

    The time of a synthesis is measured when it runs, with nothing taken from a cache, so these
    records, unlike the others, are not the same bytes twice.
    """
    profile = parameters.load_profile()
    root, source, split = parameters.root, profile.models[0], profile.corpora[0]
    path = source.resolve(root)
    model = load_model(path)
    scheme = profile.quant_schemes(model.family)[0]
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


def _splits(profile: Profile, source: ModelSource) -> Iterator[CorpusSplit]:
    """The splits that a model is scored on."""
    return (s for s in profile.corpora if not source.corpora or s.corpus in source.corpora)


def _score_on_all_splits(
    root: Path, profile: Profile, source: ModelSource, model: CTCModel, systems: list[System]
) -> Iterator[Record]:
    for split in _splits(profile, source):
        yield from score_systems(root, profile, source, model, split, systems)


def _some(records: list[Record]) -> list[Record]:
    if not records:
        raise InputError("No model is to be scored on any of these splits; choose others.")
    return records


def _float_system(experiment: str, model: CTCModel) -> System:
    return System(experiment, "float", "none", FloatRecogniser(model), model.size_mb)


def _integer_system(
    experiment: str, program: Path, recipe: _Recipe, engine: Engine = "reference"
) -> System:
    recogniser = IntegerRecogniser(load_quantized(program), engine)
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
