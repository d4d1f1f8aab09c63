"""Word error rates of float and integer models."""

from zqlib.experiments.scoring import score_profile
from zqlib.experiments.systems import Checkpoint, Recipe, System
from zqlib.parameters import Parameters
from zqlib.results import Record

__all__ = ["wer_experiment", "wer_systems"]


def wer_systems(checkpoint: Checkpoint) -> list[System]:
    """The float model, the first scheme with every calibration, the other schemes with one."""
    profile = checkpoint.profile
    first, *others = profile.quant_schemes(checkpoint.model.family)
    compared = [(first, calibration) for calibration in profile.calibrations]
    recordings = profile.resolve_calibration(checkpoint.root)
    systems = [System("wer")]
    for scheme, calibration in compared + [(s, profile.calibrations[0]) for s in others]:
        recipe = Recipe(
            scheme, calibration, profile.synthesis, recordings if calibration == "real" else None
        )
        systems.append(System("wer", recipe, "reference"))
    return systems


def wer_experiment(parameters: Parameters) -> list[Record]:
    """Score float and integer models on every split of a profile; one record each."""
    return score_profile(parameters, wer_systems)
