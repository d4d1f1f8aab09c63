"""The paper's claims, beside what the records say of them.

The published figures lie in `book/paper.json`, which no run edits. A verdict is a function of a
published figure and of records, and of nothing else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from zqlib.files import read_json
from zqlib.results import Record, read_records

__all__ = [
    "Evidence",
    "Finding",
    "Verdict",
    "above_float",
    "findings",
    "read_evidence",
    "read_paper",
    "summary",
]

_SIZE_TOLERANCE = 0.05  # of the published factor


class Verdict(StrEnum):
    """What became of a claim."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT = "not reproduced"
    UNTESTABLE = "not testable here"


@dataclass(frozen=True)
class Finding:
    """A published figure beside one of ours.

    Attributes:
        what: what was run, or would have to be.
        paper, ours, delta: the figures as they are shown, empty where there is none.
        verdict, why: the reason is a half sentence, empty where nothing has to be explained.
        record: what ours rests on.
    """

    what: str
    paper: str
    ours: str
    delta: str
    verdict: Verdict
    why: str
    record: Record | None = None


@dataclass(frozen=True)
class Evidence:
    """What runs have left: scores, and the benchmarks as they lie in their files."""

    records: Sequence[Record]
    benchmarks: Sequence[Mapping[str, Any]] = ()


def read_paper(root: Path) -> dict[str, Any]:
    """The published figures."""
    paper: dict[str, Any] = read_json(root / "book" / "paper.json")
    return paper


def read_evidence(root: Path) -> Evidence:
    """Everything below `results/` that a claim can rest on; nothing before the first run.

    Raises:
        InputError: a record is damaged.
    """
    results = root / "results"
    records = read_records(results) if any(results.glob("*/records/*.json")) else []
    timed = (sorted(results.glob(f"*/{page}/**/*.json")) for page in ("benchmark", "gpu"))
    benchmarks = [read_json(path) for paths in timed for path in paths]
    return Evidence(records, benchmarks)


def findings(paper: Mapping[str, Any], claim: Mapping[str, Any], given: Evidence) -> list[Finding]:
    """All that can be said of a claim, figure by figure and split by split."""
    rule = _RULES[claim["rule"]]
    found = []
    for figure in claim["figures"]:
        model = figure.get("model", "")
        records = [r for r in given.records if _is_of(paper["checkpoint_names"], model, r)]
        found += rule(figure, Evidence(records, given.benchmarks)) or [
            Finding(model, _published(figure), "", "", Verdict.UNTESTABLE, _missing(figure))
        ]
    return found


def summary(found: Iterable[Finding]) -> Verdict:
    """One verdict for a claim: that of all its findings if they agree, otherwise `partly`."""
    verdicts = {finding.verdict for finding in found}
    return verdicts.pop() if len(verdicts) == 1 else Verdict.PARTLY


def _is_of(names: Mapping[str, str], model: str, record: Record) -> bool:
    """Whether a record is of a model of the paper; any record is where no model is asked for."""
    return not model or names[model] in record.model.lower()


def _published(figure: Mapping[str, Any]) -> str:
    if "at_most" in figure:
        return f"at most {figure['at_most']:+.2f}"
    return f"{figure['times']:g} times" if "times" in figure else ""


def _missing(figure: Mapping[str, Any]) -> str:
    if "device" in figure:
        return f"needs a {figure['device']}"
    return f"no {figure['model']} checkpoint at hand" if "model" in figure else "nothing has run"


def _scores(records: Iterable[Record], scheme: str, calibration: str) -> list[Record]:
    """Of the word error rates on LibriSpeech; those without a caveat outrank all others."""
    scores = [
        r
        for r in records
        if (r.experiment, r.corpus) == ("wer", "librispeech")
        if (r.scheme, r.calibration) == (scheme, calibration)
    ]
    return [r for r in scores if not r.caveats] or scores


def _what(record: Record) -> str:
    return f"`{record.model}`, {record.split} ({record.utterances} utterances)"


def _gain(record: Record) -> tuple[float, float, float]:
    """Points above float, and the ends of their interval."""
    assert record.delta_wer_pct is not None and record.delta_ci95 is not None
    return record.delta_wer_pct, *record.delta_ci95


def above_float(record: Record) -> str:
    """Points above float with their interval; empty for the float model."""
    return "" if record.delta_ci95 is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*_gain(record))


def _with_caveats(verdict: Verdict, why: Sequence[str], record: Record) -> tuple[Verdict, str]:
    """A claim that holds under a caveat holds partly."""
    if verdict is Verdict.REPRODUCED and record.caveats:
        verdict = Verdict.PARTLY
    return verdict, "; ".join([*why, *record.caveats])


def _increase(figure: Mapping[str, Any], given: Evidence) -> list[Finding]:
    """INT8 costs at most so many points: at least the figure must lie below, best its interval."""
    found = []
    bound = figure["at_most"]
    for record in _scores(given.records, "w8a8", "synthetic"):
        ours, low, high = _gain(record)
        verdict = Verdict.REPRODUCED
        why = []
        if ours > bound:
            verdict = Verdict.NOT
            why = [] if low > bound else ["the interval does not exclude the paper's figure"]
        elif high > bound:
            verdict = Verdict.PARTLY
            why = ["the interval reaches beyond the paper's figure"]
        verdict, reason = _with_caveats(verdict, why, record)
        found.append(
            Finding(
                _what(record), _published(figure), above_float(record), f"{ours - bound:+.2f}",
                verdict, reason, record,
            )
        )  # fmt: skip
    return found


def _calibration(figure: Mapping[str, Any], given: Evidence) -> list[Finding]:
    """Synthetic data must do no worse than real data do, and better than noise."""
    found = []
    for record in _scores(given.records, "w8a8", "synthetic"):
        ours, _, _ = _gain(record)
        rivals = {
            kind: rival
            for kind in ("real", "noise")
            for rival in _scores(given.records, "w8a8", kind)
            if (rival.profile, rival.model, rival.split)
            == (record.profile, record.model, record.split)
        }
        verdict, why = Verdict.REPRODUCED, []
        if "real" not in rivals:
            verdict, why = Verdict.PARTLY, ["not compared with real data"]
        elif ours > _gain(rivals["real"])[2]:
            verdict, why = Verdict.NOT, ["worse than real data"]
        if "noise" in rivals and ours >= _gain(rivals["noise"])[0]:
            verdict = max(verdict, Verdict.PARTLY, key=list(Verdict).index)
            why.append("noise does as well")
        verdict, reason = _with_caveats(verdict, why, record)
        others = "".join(f"; {kind} {_gain(rival)[0]:+.2f}" for kind, rival in rivals.items())
        delta = f"{ours - _gain(rivals['real'])[0]:+.2f}" if "real" in rivals else ""
        found.append(
            Finding(
                _what(record), "as good as real data", f"synthetic {ours:+.2f}{others}", delta,
                verdict, reason, record,
            )
        )  # fmt: skip
    return found


def _integer_only(figure: Mapping[str, Any], given: Evidence) -> list[Finding]:
    """A record of the reference backend exists only if no floating-point tensor appeared."""
    guarded = [r for r in given.records if r.engine == "reference"]
    if not guarded:
        return []
    heard = sum(record.utterances for record in guarded)
    models = ", ".join(f"`{name}`" for name in sorted({record.model for record in guarded}))
    return [
        Finding(
            f"{len(guarded)} evaluations of {heard} utterances under the guard: {models}",
            "no floating point", "no floating-point tensor", "", Verdict.REPRODUCED, "",
            min(guarded, key=lambda record: record.profile != "quick"),  # what everyone can run
        )
    ]  # fmt: skip


def _size(figure: Mapping[str, Any], given: Evidence) -> list[Finding]:
    """The size of the files, which no training decides: caveats do not count."""
    found = {}
    floats = {r.model: r for r in given.records if r.scheme == "float"}
    for record in given.records:
        if (record.experiment, record.scheme, record.calibration) == ("wer", "w8a8", "synthetic"):
            times = floats[record.model].size_mb / record.size_mb
            near = times >= figure["times"] * (1 - _SIZE_TOLERANCE)
            why = "" if near else "not all of the file is 8-bit weights"
            found[record.model] = Finding(
                f"`{record.model}`, {floats[record.model].size_mb:.2f} to {record.size_mb:.2f} MB",
                _published(figure), f"{times:.2f} times", f"{times - figure['times']:+.2f}",
                Verdict.REPRODUCED if near else Verdict.PARTLY, why, record,
            )  # fmt: skip
    return list(found.values())


def _speed(figure: Mapping[str, Any], given: Evidence) -> list[Finding]:
    """The fastest integer engine on the paper's device; another device tests another claim."""
    timed = [b for b in given.benchmarks if b["precision"] == "int8"]
    found = []
    for device in dict.fromkeys(b["device"] for b in timed):
        best = max((b for b in timed if b["device"] == device), key=lambda b: float(b["ratio"]))
        same = figure["device"] in device.replace("-", " ").split()
        verdict = Verdict.UNTESTABLE
        if same:
            verdict = Verdict.REPRODUCED if best["ratio"] >= figure["times"] else Verdict.NOT
        found.append(
            Finding(
                f"`{best['model']}`, {best['engine']} against {best['baseline']}, {device}",
                _published(figure), f"{best['ratio']:.2f} times",
                f"{best['ratio'] - figure['times']:+.2f}" if same else "",
                verdict, "" if same else _missing(figure),
            )
        )  # fmt: skip
    return found


_RULES: Mapping[str, Callable[[Mapping[str, Any], Evidence], list[Finding]]] = {
    "calibration": _calibration,
    "increase": _increase,
    "integer-only": _integer_only,
    "size": _size,
    "speed": _speed,
}
