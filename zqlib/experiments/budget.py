"""What settings of the synthesis cost and reach."""

import time
from typing import Any

from zqlib.digests import cache_key
from zqlib.experiments.scoring import score_systems
from zqlib.experiments.systems import Checkpoint, Recipe, System, checkpoints
from zqlib.files import read_json, write_json
from zqlib.parameters import Parameters
from zqlib.quantized_model import quantize
from zqlib.results import Record
from zqlib.synthesis import as_calibration, synthesize

__all__ = ["budget_experiment"]


def budget_experiment(parameters: Parameters) -> list[Record]:
    """Compare settings of the synthesis on the profile's first model and split."""
    checkpoint = checkpoints(parameters)[0]
    profile, family = checkpoint.profile, checkpoint.model.family
    scheme = profile.quant_schemes(family)[0]
    systems = [System("budget")]
    for config in profile.budgets:
        recipe = Recipe(scheme, "synthetic", config)
        variant = (
            f"{config.batches}x{config.batch_size}x{config.frames}-{config.steps}steps"
            f"-lr{config.learning_rate}-{config.initialisation}-{config.deviation}"
        )
        cost = _cost(checkpoint, recipe)
        systems.append(System("budget", recipe, "cpu", variant, cost))
    return list(score_systems(checkpoint, profile.corpora[0], systems))


def _cost(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """Time and loss of a synthesis, and its program.

    The time is measured when the synthesis runs, with nothing taken from a cache, so these
    records, unlike the others, are not the same bytes twice.
    """
    config = recipe.synthesis
    key = cache_key("zqlib.synthesis", model=checkpoint.sha256, **vars(config))
    path = checkpoint.root / "work" / "budgets" / f"{key}.json"
    if not path.is_file():
        model = checkpoint.model
        start_s = time.perf_counter()
        batches = synthesize(model.network, model.front_end.config.n_mels, config)
        cost = {
            "synthesis_s": round(time.perf_counter() - start_s, 1),
            "loss_initial": float(batches[0].loss[0].sum()),
            "loss_final": float(batches[0].loss[-1].sum()),
        }
        details = {"kind": "synthetic", "synthesis": config.to_json()}
        program = quantize(model, as_calibration(batches), recipe.scheme, details)
        program.save(checkpoint.program(recipe))
        write_json(path, cost)
    found: dict[str, Any] = read_json(path)
    return found
