"""Word error rates of integer models that differ from the first scheme in one respect."""

from zqlib.experiments.scoring import score_profile
from zqlib.experiments.systems import Checkpoint, System
from zqlib.parameters import Parameters
from zqlib.results import Record
from zqlib.variations import Ablation

__all__ = ["ablation_experiment", "ablation_systems"]


def ablation_systems(checkpoint: Checkpoint) -> list[System]:
    """The float model, the first scheme, and its variations that matter to the model's family.

    They are many, so they run on the backend `cpu`, whose integers are those of the reference.
    """
    profile, family = checkpoint.profile, checkpoint.model.family
    first = checkpoint.recipe(Ablation("as-is"))
    variants = {first: ""}  # an ablation that changes nothing for a family adds nothing
    for ablation in profile.ablations:
        if ablation.concerns(family):
            variants.setdefault(checkpoint.recipe(ablation), ablation.name)
    return [System("ablation")] + [
        System("ablation", recipe, "cpu", name) for recipe, name in variants.items()
    ]


def ablation_experiment(parameters: Parameters) -> list[Record]:
    """Score variations of a profile's first scheme, beside it and the float model."""
    return score_profile(parameters, ablation_systems)
