"""Scores systems on a corpus split, resumably and in shards, and writes a record for each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zqlib.corpora.manifest import read_manifest
from zqlib.digests import cache_key
from zqlib.errors import InputError
from zqlib.evaluation import (
    Hypothesis,
    paired_difference,
    read_hypotheses,
    word_error_rate,
    write_hypotheses,
)
from zqlib.experiments.systems import Checkpoint, System, checkpoints
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit
from zqlib.quantized_model import load_quantized
from zqlib.recognition import recognise_manifest
from zqlib.results import Record, commit, device_name, provenance, write_record

__all__ = [
    "WHOLE",
    "hear",
    "hypotheses_path",
    "merge_shards",
    "score_profile",
    "score_systems",
]

WHOLE = (0, 1)
"""The shard that is the whole split."""


def _name(checkpoint: Checkpoint, system: System, split: CorpusSplit) -> str:
    parts = (checkpoint.name, system.scheme, system.calibration, system.engine, split.corpus,
             split.split, system.variant)  # fmt: skip
    return "_".join(filter(None, parts))


def hypotheses_path(
    checkpoint: Checkpoint, system: System, split: CorpusSplit, shard: tuple[int, int] = WHOLE
) -> Path:
    """Where a system's hypotheses are kept while and after they come, below `work/`."""
    key = cache_key(
        "zqlib.simulations" if system.simulation else "zqlib.recognition",
        model=checkpoint.sha256,
        program=checkpoint.program(system.recipe).name if system.recipe else None,
        engine=system.engine,
        data=checkpoint.data_sha256(split),
    )
    part = "" if shard == WHOLE else "-{}of{}".format(*shard)
    name = f"{_name(checkpoint, system, split)}-{key}{part}.jsonl"
    return checkpoint.root / "work" / "hypotheses" / name


def hear(
    checkpoint: Checkpoint, system: System, split: CorpusSplit, shard: tuple[int, int] = WHOLE
) -> list[Hypothesis]:
    """What a system makes of a split, or of part i of n of it; continued where it stopped."""
    print(_name(checkpoint, system, split).replace("_", " "), flush=True)
    partial = hypotheses_path(checkpoint, system, split, shard)
    manifest = split.resolve(checkpoint.root)
    return recognise_manifest(checkpoint.recogniser(system), manifest, partial=partial, shard=shard)


def merge_shards(checkpoint: Checkpoint, system: System, split: CorpusSplit, shards: int) -> None:
    """Join what shards have heard: the file that one run over all utterances would have left.

    Raises:
        InputError: a shard is missing or damaged.
    """
    parts = [
        hypothesis
        for index in range(shards)
        for hypothesis in read_hypotheses(
            hypotheses_path(checkpoint, system, split, (index, shards))
        )
    ]
    said = [utterance.text for utterance in read_manifest(split.resolve(checkpoint.root))]
    if [part.reference for part in parts] != said:
        raise InputError(f"The shards of {_name(checkpoint, system, split)} are incomplete.")
    write_hypotheses(hypotheses_path(checkpoint, system, split), parts)


def score_systems(
    checkpoint: Checkpoint, split: CorpusSplit, systems: Iterable[System]
) -> Iterator[Record]:
    """One record per system; the first is the float model, which the others are compared with."""
    root, profile = checkpoint.root, checkpoint.profile
    manifest = split.resolve(root)
    utterances = read_manifest(manifest)
    digests = {"model_sha256": checkpoint.sha256, "data_sha256": checkpoint.data_sha256(split)}
    baseline: list[Hypothesis] = []
    for system in systems:
        settings: dict[str, Any] = dict(digests)
        if system.recipe:
            program = load_quantized(checkpoint.make_program(system.recipe))
            settings |= {"scheme": program.scheme.to_json(), "calibration": program.calibration}
        if system.simulation:  # what the program was calibrated on gave the weights alone
            settings["calibration"] = {
                "kind": system.simulation,
                "weights": settings["calibration"],
            }
        hypotheses = hear(checkpoint, system, split)
        stored = Path("hypotheses") / f"{_name(checkpoint, system, split)}.jsonl"
        write_hypotheses(profile.folder(root) / stored, hypotheses)
        baseline = baseline or hypotheses
        score = word_error_rate(hypotheses)
        delta = paired_difference(baseline, hypotheses) if system.recipe else None
        record = Record(
            profile=profile.name,
            experiment=system.experiment,
            model=checkpoint.name,
            family=checkpoint.model.family,
            scheme=system.scheme,
            calibration=system.calibration,
            engine=system.engine,
            corpus=split.corpus,
            split=split.split,
            utterances=score.utterances,
            words=score.words,
            audio_s=round(sum(u.duration_s for u in utterances), 2),
            wer_pct=score.wer_pct,
            wer_ci95=score.ci95,
            delta_wer_pct=delta.delta_wer_pct if delta else None,
            delta_ci95=delta.ci95 if delta else None,
            size_mb=checkpoint.size_mb(system),
            caveats=(*split.all_caveats(utterances), *checkpoint.source.caveats, *system.caveats),
            hypotheses=stored.as_posix(),
            device=device_name(),
            commit=commit(root),
            provenance=provenance(**settings, **system.details),
            variant=system.variant,
        )
        write_record(profile.folder(root).parent, record)
        yield record


def score_profile(
    parameters: Parameters, systems: Callable[[Checkpoint], Sequence[System]]
) -> list[Record]:
    """`score_systems` for every model of a profile on every split that it is scored on.

    Raises:
        InputError: there is nothing to score.
    """
    records = [
        record
        for model in checkpoints(parameters)
        for split in model.splits()
        for record in score_systems(model, split, systems(model))
    ]
    if not records:
        raise InputError("No model is to be scored on any of these splits; choose others.")
    return records
