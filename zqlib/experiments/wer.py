"""Word error rates of float and integer models."""

from zqlib.experiments.scoring import score_profile
from zqlib.experiments.systems import Checkpoint, Recipe, System
from zqlib.parameters import Parameters
from zqlib.quantization.scheme import QuantScheme
from zqlib.recognition import Engine
from zqlib.results import Record
from zqlib.simulations import SIMULATIONS

__all__ = ["wer_experiment", "wer_systems"]


def wer_systems(checkpoint: Checkpoint) -> list[System]:
    """The float model, the first scheme with every calibration, the other schemes with one.

    The first integer program runs on the backend `reference`; the others, which are many, run on
    `cpu`, whose integers are those of the reference.
    """
    profile = checkpoint.profile
    first, *others = profile.quant_schemes(checkpoint.model.family)
    compared = [(first, calibration) for calibration in profile.calibrations]
    compared += [(scheme, profile.calibrations[0]) for scheme in others]
    return [System("wer")] + [
        _system(checkpoint, scheme, calibration, "cpu" if index else "reference")
        for index, (scheme, calibration) in enumerate(compared)
    ]


def _system(
    checkpoint: Checkpoint, scheme: QuantScheme, calibration: str, engine: Engine
) -> System:
    profile = checkpoint.profile
    if simulation := SIMULATIONS.get(calibration):
        recipe = Recipe(scheme, "synthetic", profile.synthesis)
        return System("wer", recipe, simulation.engine, simulation=calibration)
    recordings = profile.resolve_calibration(checkpoint.root) if calibration == "real" else None
    return System("wer", Recipe(scheme, calibration, profile.synthesis, recordings), engine)


def wer_experiment(parameters: Parameters) -> list[Record]:
    """Score float and integer models on every split of a profile; one record each."""
    return score_profile(parameters, wer_systems)
