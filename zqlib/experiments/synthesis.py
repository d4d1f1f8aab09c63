"""Synthetic data for each model, and how it came closer to the statistics."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from zqlib.batch_statistics import layer_statistics
from zqlib.experiments.systems import Checkpoint, checkpoints
from zqlib.files import write_json
from zqlib.models import CTCModel
from zqlib.parameters import Parameters
from zqlib.results import commit, device_name, provenance
from zqlib.synthesis import SyntheticBatch, synthesize

__all__ = ["SynthesisResult", "synthesis_experiment", "synthetic_set"]


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


def synthetic_set(checkpoint: Checkpoint) -> list[SyntheticBatch]:
    """The profile's synthetic set for a model; finished batches are taken from `work/`."""
    model = checkpoint.model
    n_mels = model.front_end.config.n_mels
    return synthesize(model.network, n_mels, checkpoint.profile.synthesis, checkpoint.cache)


def synthesis_experiment(parameters: Parameters) -> Iterator[SynthesisResult]:
    """Synthesise data for each model of a profile and record how the statistics came closer."""
    for checkpoint in checkpoints(parameters):
        profile, model = checkpoint.profile, checkpoint.model
        config, n_mels = profile.synthesis, model.front_end.config.n_mels
        batches = synthetic_set(checkpoint)
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
            "caveats": list(checkpoint.source.caveats),
            "config": config.to_json(),
            "loss": [batch.loss.sum(1).tolist() for batch in batches],
            "layers": {
                name: {"initial": float(first[i]), "final": float(last[i])}
                for i, name in enumerate(before)
            },
            "device": device_name(),
            "commit": commit(parameters.root),
            "provenance": provenance(model_sha256=checkpoint.sha256),
        }
        folder = profile.folder(parameters.root)
        write_json(folder / "synthesis" / f"{model.name}.json", record)
        yield SynthesisResult(model, batches, before, after, record)
