"""Errors of integer programs, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from zqlib.audio import audio_features
from zqlib.calibration_data import calibration_batches
from zqlib.corpora.manifest import read_manifest
from zqlib.digests import cache_key
from zqlib.experiments.systems import Checkpoint, Recipe, checkpoints
from zqlib.files import read_json, write_json
from zqlib.layer_errors import tensor_errors
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit
from zqlib.results import commit, device_name, provenance

__all__ = ["compare_layers", "layers_experiment", "layers_path", "logits_snr_db"]

_COMPARED = 8  # utterances whose tensors are compared one by one


def layers_path(checkpoint: Checkpoint, split: CorpusSplit) -> Path:
    """Where a model's errors are kept below `work/`."""
    profile = checkpoint.profile
    schemes = profile.quant_schemes(checkpoint.model.family)
    key = cache_key(
        "zqlib.experiments.layers",
        model=checkpoint.sha256,
        data=checkpoint.data_sha256(split),
        schemes=[scheme.to_json() for scheme in schemes],
        synthesis=profile.synthesis.to_json(),
    )
    return checkpoint.root / "work" / "layers" / f"{checkpoint.name}-{key}.json"


def compare_layers(checkpoint: Checkpoint, split: CorpusSplit) -> dict[str, Any]:
    """What the programs of each scheme lose; what is below `work/` is not computed again.

    Returns:
        `tensors`, by scheme, the errors of its tensors in order of execution, each with the fields
        of `zqlib.layer_errors.TensorError`; and `calibration`, what the programs come from.
    """
    profile, model = checkpoint.profile, checkpoint.model
    path = layers_path(checkpoint, split)
    if not path.is_file():
        features = _features(checkpoint, split)
        data, details = calibration_batches(
            model, "synthetic", profile.synthesis, cache=checkpoint.cache
        )
        tensors = {
            scheme.name: [asdict(e) for e in tensor_errors(model, data, scheme, features)]
            for scheme in profile.quant_schemes(model.family)
        }
        write_json(path, {"tensors": tensors, "calibration": details})
    found: dict[str, Any] = read_json(path)
    return found


def logits_snr_db(checkpoint: Checkpoint, split: CorpusSplit, recipe: Recipe) -> float:
    """Signal over error of the logits of one integer program; kept below `work/`."""
    key = cache_key(
        "zqlib.experiments.layers",
        program=checkpoint.program(recipe).name,
        data=checkpoint.data_sha256(split),
    )
    path = checkpoint.root / "work" / "layers" / f"{checkpoint.name}-logits-{key}.json"
    if not path.is_file():
        data, _ = checkpoint.calibration(recipe)
        features = _features(checkpoint, split)
        *_, logits = tensor_errors(checkpoint.model, data, recipe.scheme, features)
        write_json(path, asdict(logits))
    return float(read_json(path)["total_snr_db"])


def _features(checkpoint: Checkpoint, split: CorpusSplit) -> list[Tensor]:
    utterances = read_manifest(split.resolve(checkpoint.root))[:_COMPARED]
    return [audio_features(u.audio_path, checkpoint.model.front_end) for u in utterances]


def layers_experiment(parameters: Parameters) -> Iterator[dict[str, Any]]:
    """Compare the integer programs of each model with the float model, tensor by tensor.

    Yields:
        The record of each model, with what `compare_layers` returns.
    """
    root = parameters.root
    for checkpoint in checkpoints(parameters):
        split = next(checkpoint.splits(), None)
        if split is None:
            continue
        profile, source = checkpoint.profile, checkpoint.source
        utterances = read_manifest(split.resolve(root))[:_COMPARED]
        record = {
            "experiment": "layers",
            "profile": profile.name,
            "model": checkpoint.name,
            "family": checkpoint.model.family,
            "corpus": split.corpus,
            "split": split.split,
            "utterances": len(utterances),
            "caveats": [*split.all_caveats(utterances), *source.caveats],
            **compare_layers(checkpoint, split),
            "device": device_name(),
            "commit": commit(root),
            "provenance": provenance(
                model_sha256=checkpoint.sha256, data_sha256=checkpoint.data_sha256(split)
            ),
        }
        write_json(profile.folder(root) / "layers" / f"{checkpoint.name}.json", record)
        yield record
