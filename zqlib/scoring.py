"""Scores recognisers on a corpus split, resumably, and writes a record for each."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.evaluation import Hypothesis, paired_difference, word_error_rate, write_hypotheses
from zqlib.files import sha256_file
from zqlib.models import CTCModel
from zqlib.profiles import CorpusSplit, ModelSource, Profile
from zqlib.recognition import IntegerRecogniser, Recogniser, recognise_manifest
from zqlib.results import Record, commit, device_name, provenance, write_record

__all__ = ["System", "cache_key", "data_digest", "score_systems", "source_digest"]


@cache
def source_digest() -> str:
    """SHA-256 over the sources of zqlib: a result of other code is not taken for this one's."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent.name != "training" and path.name != "cli.py":
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def data_digest(manifest: Path) -> str:
    """SHA-256 over a manifest's transcripts and the bytes of its audio."""
    digest = hashlib.sha256()
    for utterance in read_manifest(manifest):
        digest.update(utterance.text.encode())
        if not utterance.audio_path.is_file():
            raise InputError(f"{utterance.audio_path}, named by {manifest}, does not exist.")
        digest.update(utterance.audio_path.read_bytes())
    return digest.hexdigest()


def cache_key(**parts: Any) -> str:
    """A short name for whatever was made from `parts`, JSON-able, by this version of the code."""
    text = json.dumps({**parts, "source": source_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class System:
    """A recogniser to score, and how its records name it.

    Attributes:
        experiment, scheme, calibration, size_mb, variant: see `zqlib.results.Record`.
        recogniser: the float model or an integer program.
        details: more for the record's provenance.
    """

    experiment: str
    scheme: str
    calibration: str
    recogniser: Recogniser
    size_mb: float
    variant: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def score_systems(
    root: Path,
    profile: Profile,
    source: ModelSource,
    model: CTCModel,
    split: CorpusSplit,
    systems: Sequence[System],
) -> Iterator[Record]:
    """One record per system; the first is the float model, which the others are compared with."""
    manifest = split.resolve(root)
    utterances = read_manifest(manifest)
    digests = {
        "model_sha256": sha256_file(source.resolve(root)),
        "data_sha256": data_digest(manifest),
    }
    baseline: list[Hypothesis] = []
    for system in systems:
        settings: dict[str, Any] = dict(digests)
        if isinstance(system.recogniser, IntegerRecogniser):
            settings["scheme"] = system.recogniser.model.scheme.to_json()
            settings["calibration"] = system.recogniser.model.calibration
        engine = system.recogniser.engine
        parts = (model.name, system.scheme, system.calibration, engine, split.corpus, split.split)
        name = "_".join((*parts, *filter(None, [system.variant])))
        print(name.replace("_", " "), flush=True)
        partial = (
            root / "work" / "hypotheses" / f"{name}-{cache_key(engine=engine, **settings)}.jsonl"
        )
        hypotheses = recognise_manifest(system.recogniser, manifest, partial=partial)
        stored = Path("hypotheses") / f"{name}.jsonl"
        write_hypotheses(root / "results" / profile.name / stored, hypotheses)
        baseline = baseline or hypotheses
        score = word_error_rate(hypotheses)
        delta = None if system.scheme == "float" else paired_difference(baseline, hypotheses)
        record = Record(
            profile=profile.name,
            experiment=system.experiment,
            model=model.name,
            family=model.family,
            scheme=system.scheme,
            calibration=system.calibration,
            engine=engine,
            corpus=split.corpus,
            split=split.split,
            utterances=score.utterances,
            words=score.words,
            audio_s=round(sum(u.duration_s for u in utterances), 2),
            wer_pct=score.wer_pct,
            wer_ci95=score.ci95,
            delta_wer_pct=delta.delta_wer_pct if delta else None,
            delta_ci95=delta.ci95 if delta else None,
            size_mb=system.size_mb,
            caveats=(*split.all_caveats(utterances), *source.caveats),
            hypotheses=stored.as_posix(),
            device=device_name(),
            commit=commit(root),
            provenance=provenance(**settings, **system.details),
            variant=system.variant,
        )
        write_record(root / "results", record)
        yield record
