"""What every method for fewer bits is worth, alone and together with others, at several widths.

Beside the word error rate of an integer program stand what it takes (bytes, bit operations) and
what a user without any data can know of it: how well its logits follow the float model's on
synthetic features that nothing was calibrated on. By that last measure, which no label and no
recording enters, the usual recipe of each width was chosen (`zqlib.quantization.scheme`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zqlib.digests import cache_key
from zqlib.experiments.bit_operations import FRAMES, bit_operations
from zqlib.experiments.scoring import score_systems
from zqlib.experiments.systems import Checkpoint, Recipe, System, checkpoints
from zqlib.files import read_json, write_json
from zqlib.integer.backends import cpu
from zqlib.parameters import Parameters
from zqlib.quantization.fold import fold
from zqlib.quantization.scheme import QuantScheme, preset, usual_scheme
from zqlib.quantized_model import load_quantized
from zqlib.results import Record

__all__ = ["methods_experiment", "pareto_front", "signal_to_error_db"]

_HELD_OUT = 1_000_000  # seeds from here on make features that no program is calibrated on


def methods_experiment(parameters: Parameters) -> list[Record]:
    """Score a profile's methods at each of their widths, each model on its first split.

    The provenance of a record names the `method` and the `width`, and has `held_out_snr_db` (see
    `signal_to_error_db`) and `bops`, bit operations for 10 s of speech.
    """
    return [
        record
        for checkpoint in checkpoints(parameters)
        for split in list(checkpoint.splits())[:1]
        for record in score_systems(checkpoint, split, _systems(checkpoint))
    ]


def _systems(checkpoint: Checkpoint) -> Iterator[System]:
    """The float model, a program for every method of the profile at each of its widths, and for
    each width one as it is usual, and one that recordings made in the same way if there are any.
    """
    profile, family = checkpoint.profile, checkpoint.model.family
    range_method = profile.quant_schemes(family)[0].range_method
    yield System("methods")
    held_out = _held_out(checkpoint)
    known = set[Recipe]()  # a method that changes nothing at a width adds nothing
    methods = [method for method in profile.methods if method.concerns(family)]
    for method in methods:
        for width in method.schemes:
            untouched = {"equalize": False, "recentre": False}
            plain = preset(width, range_method=range_method, **untouched)
            recipe = Recipe(method.apply(plain), "synthetic", method.synthesise(profile.synthesis))
            if recipe not in known:
                known.add(recipe)
                yield _system(checkpoint, recipe, method.name, width, held_out)
    for width in dict.fromkeys(width for method in methods for width in method.schemes):
        recipe = Recipe(usual_scheme(width, family), "synthetic", profile.synthesis)
        yield _system(checkpoint, recipe, "usual", width, held_out)
        if recordings := profile.resolve_calibration(checkpoint.root):
            recipe = replace(recipe, calibration="real", recordings=recordings)
            yield _system(checkpoint, recipe, "recordings", width, held_out)


def _system(
    checkpoint: Checkpoint,
    recipe: Recipe,
    method: str,
    width: str,
    held_out: tuple[Tensor, Tensor, Tensor],
) -> System:
    details = {"method": method, "width": width, **_measures(checkpoint, recipe, held_out)}
    return System("methods", recipe, "cpu", f"{method}-{width}", details)


def _held_out(checkpoint: Checkpoint) -> tuple[Tensor, Tensor, Tensor]:
    """Synthetic features that no program is calibrated on, their lengths, and float logits."""
    config = checkpoint.profile.synthesis
    config = replace(config, seed=config.seed + _HELD_OUT, batches=1)
    data, _ = checkpoint.calibration(Recipe(QuantScheme(), "synthetic", config))
    [(features, lengths)] = data
    logits, _ = fold(checkpoint.model.network, QuantScheme()).run(features, lengths)
    return features, lengths, logits


def _measures(
    checkpoint: Checkpoint, recipe: Recipe, held_out: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Any]:
    """What is known of a program without speech; kept below `work/`."""
    path = checkpoint.make_program(recipe)
    key = cache_key("zqlib.experiments.methods", "zqlib.synthesis", program=path.name,
                    synthesis=checkpoint.profile.synthesis.to_json())  # fmt: skip
    kept = checkpoint.root / "work" / "methods" / f"{path.stem}-{key}.json"
    if not kept.is_file():
        model, (features, lengths, logits) = load_quantized(path), held_out
        executor = cpu.Executor(model.program, torch.get_num_threads())
        found = executor.run(model.quantize_features(features), lengths)
        write_json(kept, {
            "held_out_snr_db": signal_to_error_db(logits, found.logits, found.lengths.tolist()),
            "bops": sum(row["bops"] for row in bit_operations(model.program, FRAMES)),
        })  # fmt: skip
    measures: dict[str, Any] = read_json(kept)
    return measures


def signal_to_error_db(expected: Tensor, found: Tensor, lengths: Sequence[int]) -> float:
    """Signal over error of integer logits, whose step is the one that makes the error least.

    Both are taken about the mean of a frame's classes, which no probability depends on.

    Args:
        expected: float logits, (batch, classes, frames).
        found: integer logits, shaped alike.
        lengths: of the utterances, in frames.

    Returns:
        10 log10 of the squares of the float logits over those of the differences.
    """
    frames = [
        torch.cat([x[:, :length] for x, length in zip(logits.double(), lengths, strict=True)], 1)
        for logits in (expected, found)
    ]
    true, integers = (x - x.mean(0) for x in frames)
    step = (true * integers).sum() / integers.square().sum().clamp(min=1e-30)
    error = (true - step * integers).square().sum()
    return 10 * math.log10(float(true.square().sum()) / max(float(error), 1e-30))


def pareto_front(costs: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Indices, by cost, of those whose error nothing of the same or a lower cost equals."""
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], errors[i])):
        if not front or errors[index] < errors[front[-1]]:
            front.append(index)
    return front
