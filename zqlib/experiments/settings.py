"""What settings of the synthesis, and percentiles of its ranges, reach, over several seeds."""

from dataclasses import replace

from zqlib.experiments.layers import logits_snr_db
from zqlib.experiments.scoring import score_systems
from zqlib.experiments.systems import Checkpoint, System, checkpoints
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit
from zqlib.results import Record
from zqlib.variations import Ablation

__all__ = ["settings_experiment"]

_APART = 1000  # batch i of a set uses its seed + i


def settings_experiment(parameters: Parameters) -> list[Record]:
    """Compare a profile's settings, and none of them, for each of its models on its first split.

    The provenance of a record names the `setting`, and says of the logits what signal over error
    is, as `logits_snr_db`.
    """
    return [
        record
        for checkpoint in checkpoints(parameters)
        for split in list(checkpoint.splits())[:1]
        for record in score_systems(checkpoint, split, _systems(checkpoint, split))
    ]


def _systems(checkpoint: Checkpoint, split: CorpusSplit) -> list[System]:
    profile, family = checkpoint.profile, checkpoint.model.family
    systems = [System("settings")]
    for setting in (Ablation("as-is"), *profile.settings):
        if not setting.concerns(family):
            continue
        for repeat in range(profile.repeats):
            recipe = checkpoint.recipe(setting)
            seed = recipe.synthesis.seed + _APART * repeat
            recipe = replace(recipe, synthesis=replace(recipe.synthesis, seed=seed))
            snr_db = logits_snr_db(checkpoint, split, recipe)
            details = {"setting": setting.name, "logits_snr_db": snr_db}
            name = f"{setting.name}-seed{seed}"
            systems.append(System("settings", recipe, "cpu", name, details))
    return systems
