"""What settings of the synthesis cost and reach, and what rounding to each scheme takes."""

import time
from collections.abc import Iterator
from typing import Any

from zqlib.digests import cache_key
from zqlib.experiments.scoring import score_systems
from zqlib.experiments.systems import Checkpoint, Recipe, System, checkpoints
from zqlib.files import read_json, write_json
from zqlib.parameters import Parameters
from zqlib.quantized_model import quantize
from zqlib.results import Record
from zqlib.synthesis import SynthesisConfig, synthesize

__all__ = ["budget_experiment"]


def budget_experiment(parameters: Parameters) -> list[Record]:
    """Compare settings of the synthesis on the profile's first model and split.

    All settings with the first scheme, the first of them with the others too. The provenance of a
    record has `synthesis_s` and `rounding_s`. They are measured when the work is done, with nothing
    taken from a cache, so these records, unlike the others, are not the same bytes twice.
    """
    checkpoint = checkpoints(parameters)[0]
    systems = _systems(checkpoint)
    return list(score_systems(checkpoint, checkpoint.profile.corpora[0], systems))


def _systems(checkpoint: Checkpoint) -> Iterator[System]:
    profile = checkpoint.profile
    schemes = profile.quant_schemes(checkpoint.model.family)
    yield System("budget")
    for config in profile.budgets:
        variant = (
            f"{config.batches}x{config.batch_size}x{config.frames}-{config.steps}steps"
            f"-lr{config.learning_rate}-{config.initialisation}-{config.deviation}"
        )
        cost = _synthesis_cost(checkpoint, config)
        for scheme in schemes if config == profile.budgets[0] else schemes[:1]:
            recipe = Recipe(scheme, "synthetic", config)
            details = cost | _rounding_cost(checkpoint, recipe)
            yield System("budget", recipe, "cpu", variant, details)


def _synthesis_cost(checkpoint: Checkpoint, config: SynthesisConfig) -> dict[str, Any]:
    """Time and loss of a synthesis; kept below `work/`."""
    key = cache_key("zqlib.synthesis", model=checkpoint.sha256, **vars(config))
    path = checkpoint.root / "work" / "budgets" / f"{key}.json"
    if not path.is_file():
        model = checkpoint.model
        start_s = time.perf_counter()
        batches = synthesize(model.network, model.front_end.config.n_mels, config)
        write_json(path, {
            "synthesis_s": round(time.perf_counter() - start_s, 1),
            "loss_initial": float(batches[0].loss[0].sum()),
            "loss_final": float(batches[0].loss[-1].sum()),
        })  # fmt: skip
    found: dict[str, Any] = read_json(path)
    return found


def _rounding_cost(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """Time from the synthetic set to the program, which it makes; kept below `work/`."""
    program = checkpoint.program(recipe)
    path = checkpoint.root / "work" / "budgets" / f"{program.stem}.json"
    if not path.is_file():
        data, details = checkpoint.calibration(recipe)
        start_s = time.perf_counter()
        quantized = quantize(checkpoint.model, data, recipe.scheme, details)
        rounding_s = round(time.perf_counter() - start_s, 1)
        quantized.save(program)
        write_json(path, {"rounding_s": rounding_s})
    found: dict[str, Any] = read_json(path)
    return found
