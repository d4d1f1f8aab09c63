"""What the shortcuts of the authors' code cost, one by one, beside what is done here."""

from dataclasses import dataclass
from typing import Any

from zqlib.evaluation import PairedDifference, paired_difference, read_hypotheses
from zqlib.experiments.layers import logits_snr_db
from zqlib.experiments.scoring import score_systems
from zqlib.experiments.systems import Checkpoint, Recipe, System, checkpoints
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.rules import accumulator_bound
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit
from zqlib.quantized_model import load_quantized
from zqlib.results import Record
from zqlib.variations import Ablation

__all__ = ["Comparison", "SHORTCUTS", "Shortcut", "shortcuts_experiment"]


@dataclass(frozen=True)
class Shortcut:
    """A shortcut that can be switched on by itself.

    Attributes:
        numbers: of the list on the page `notebooks/shortcuts.ipynb`.
        theirs: the switch.
        ours: what it is compared with.
    """

    numbers: str
    theirs: Ablation
    ours: Ablation


# weights at the nearest level, as theirs are: the rounding that is usual here would make up for
# what a shortcut loses, and cannot leave an end of the grid unused
_NEAREST = {"weight_rounding": "nearest", "bias_correction": False}
_OURS = Ablation("nearest", _NEAREST)
_CONVOLUTIONAL = ("quartznet", "jasper")
# as many batches as the authors', because their number decides what the first one weighs
_TWENTY = {"batches": 20, "batch_size": 2, "frames": 250, "min_frames": 250}
_EXACT = Ablation("20-batches", _NEAREST | {"range_method": "minmax"}, synthesis=_TWENTY)
_CUT = _NEAREST | {"both_ends": False}
_AVERAGE = _NEAREST | {"range_method": "moving-average"}
_SUMS: dict[str, Any] = {"signed_sums": True, "residual_sum": "shared"}
_EPS = {"deviation": "authors"}

SHORTCUTS = (
    Shortcut("2", Ablation("weights-cut", _CUT), _OURS),
    Shortcut("2", Ablation("w4-weights-cut", {"weight_bits": 4, **_CUT}),
             Ablation("w4", {"weight_bits": 4, **_NEAREST})),
    Shortcut("3", Ablation("moving-average", _AVERAGE, synthesis=_TWENTY), _EXACT),
    Shortcut("4", Ablation("shared-range", _NEAREST | {"residual_sum": "shared"}, ("jasper",)),
             _OURS),
    Shortcut("5", Ablation("signed-sums", _NEAREST | {"signed_sums": True}, _CONVOLUTIONAL), _OURS),
    Shortcut("6", Ablation("authors-eps", _NEAREST, synthesis=_EPS), _OURS),
    Shortcut("2-6", Ablation("all-at-once", _CUT | _AVERAGE | _SUMS, synthesis=_TWENTY | _EPS),
             _EXACT),
)  # fmt: skip
"""Those of the list that concern the integer model and its calibration."""


@dataclass(frozen=True)
class Comparison:
    """A shortcut on one model.

    Attributes:
        shortcut: what was switched on.
        ours, theirs: the records without and with it; each provenance has `logits_snr_db`, signal
            over error of the logits, and `accumulator_bound`, the largest magnitude that any input
            could give an accumulator.
        cost: in WER, of theirs above ours.
    """

    shortcut: Shortcut
    ours: Record
    theirs: Record
    cost: PairedDifference


def shortcuts_experiment(parameters: Parameters) -> list[Comparison]:
    """Switch on each shortcut for each model of a profile, on its first split."""
    found = []
    for checkpoint in checkpoints(parameters):
        family, split = checkpoint.model.family, next(checkpoint.splits(), None)
        if split is None:
            continue
        chosen = [s for s in SHORTCUTS if family in (s.theirs.families or (family,))]
        variants = {v.name: v for shortcut in chosen for v in (shortcut.ours, shortcut.theirs)}
        systems = [System("shortcuts")]
        systems += [_system(checkpoint, split, variant) for variant in variants.values()]
        records = {r.variant: r for r in score_systems(checkpoint, split, systems)}
        folder = checkpoint.profile.folder(parameters.root)
        for shortcut in chosen:
            ours, theirs = (records[v.name] for v in (shortcut.ours, shortcut.theirs))
            heard = [read_hypotheses(folder / record.hypotheses) for record in (ours, theirs)]
            found.append(Comparison(shortcut, ours, theirs, paired_difference(*heard)))
    return found


def _system(checkpoint: Checkpoint, split: CorpusSplit, variant: Ablation) -> System:
    recipe = checkpoint.recipe(variant)
    details = {
        "logits_snr_db": logits_snr_db(checkpoint, split, recipe),
        "accumulator_bound": _accumulator_bound(checkpoint, recipe),
    }
    return System("shortcuts", recipe, "cpu", variant.name, details)


def _accumulator_bound(checkpoint: Checkpoint, recipe: Recipe) -> int:
    program = load_quantized(checkpoint.make_program(recipe)).program
    return max(
        int(accumulator_bound(operator, program.tensors[operator.input]).max())
        for operator in program.operators
        if isinstance(operator, Conv1d | Conv2d)
    )
