"""The head of the README: a picture and tables, made from the records and never typed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zqlib.book.claims import Evidence, above_float, findings, read_evidence, read_paper, summary
from zqlib.book.pages import command, verdict_with_mark
from zqlib.book.tables import markdown_table
from zqlib.errors import InputError
from zqlib.files import atomic_output
from zqlib.results import Record
from zqlib.simulations import SIMULATIONS

__all__ = ["claims_table", "update_readme"]

PICTURE = Path("book") / "headline.svg"
_GREY = "#767676"  # as far from white as from black: the picture has no background of its own
_SYSTEMS = {
    ("w8a8", "synthetic"): ("INT8, no data", "#2a7fd4"),
    ("w8a8", "real"): ("INT8, real data", "#3a9a4a"),
    ("w8a8", "noise"): ("INT8, noise", "#d1603d"),
}


def update_readme(root: Path) -> None:
    """Write the picture, and the tables between the markers of README.md.

    Raises:
        InputError: a pair of markers is missing, or there are no records.
    """
    evidence = read_evidence(root)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, make in _TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise InputError(f"README.md must have the lines {begin.strip()} and {end} once.")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}{make(root, evidence)}\n{end}{after}"
    _draw(_rows(evidence), root / PICTURE)
    with atomic_output(readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


def claims_table(root: Path, evidence: Evidence) -> str:
    """One line per claim: the verdict, the command, what it took."""
    paper = read_paper(root)
    rows = []
    for claim in paper["claims"]:
        found = findings(paper, claim, evidence)
        runs = dict.fromkeys((f.record.profile, f.record.experiment) for f in found if f.record)
        commands = "<br>".join(f"`{command(root, *run)}`" for run in runs)
        rows.append((claim["id"], claim["claim"], verdict_with_mark(summary(found)), commands))
    return markdown_table(("", "Claim", "Verdict here", "Command"), rows)


def _rows(evidence: Evidence) -> list[Record]:
    """The word error rates of real checkpoints on LibriSpeech test-other, float first."""
    return [
        r
        for r in evidence.records
        if (r.experiment, r.corpus, r.split) == ("wer", "librispeech", "test-other")
        if r.calibration not in SIMULATIONS
    ]


def _headline_table(root: Path, evidence: Evidence) -> str:
    rows = [
        (
            r.model, str(r.utterances),
            "float" if r.scheme == "float" else f"{r.scheme.upper()}, {r.calibration}",
            f"{r.wer_pct:.2f}",
            above_float(r),
            f"{r.size_mb:.1f}",
        )
        for r in _rows(evidence)
    ]  # fmt: skip
    header = ("Model", "Utterances", "System", "WER %", "Above float [95 %]", "MB")
    return markdown_table(header, rows)


def _speed_table(root: Path, evidence: Evidence) -> str:
    """Our kernels beside the float baseline and the fastest INT8 peer, one utterance of 10 s."""
    cases: dict[tuple[str, int, str, str], dict[str, Mapping[str, Any]]] = {}
    for r in evidence.benchmarks:
        if (r["batch"], r["audio_s"]) == (1, 10):
            systems = cases.setdefault((r["model"], r["threads"], r["device"], r["profile"]), {})
            systems[f"{r['engine']}:{r['precision']}"] = r
    rows = []
    for (model, threads, device, _), systems in sorted(cases.items()):
        own = systems.pop("cpu:int8", None)
        base = systems.get(own["baseline"]) if own else None
        peers = [r for r in systems.values() if r["precision"] == "int8"]
        if not (own and base and peers):
            continue
        peer = min(peers, key=lambda r: float(r["latency_ms"]))
        low, high = own["ratio_ci95"]
        rows.append((
            model, device, str(threads),
            f"{base['latency_ms']:.1f}",
            f"{peer['latency_ms']:.1f} ({peer['engine']})",
            f"{own['latency_ms']:.1f}",
            f"{own['ratio']:.2f} [{low:.2f}, {high:.2f}]",
            f"{peer['latency_ms'] / own['latency_ms']:.2f}",
        ))  # fmt: skip
    against = (
        evidence.benchmarks[0]["baseline"].replace(":", " ") if evidence.benchmarks else "float"
    )
    header = ("Model", "Device", "Threads", f"{against}, ms", "Fastest INT8 peer, ms", "Ours, ms",
              f"Times {against} [95 %]", "Times the peer")  # fmt: skip
    return markdown_table(header, rows)


def _gpu_table(root: Path, evidence: Evidence) -> str:
    """Our kernels on a GPU beside torch there, utterances of 10 s."""
    cases: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for r in evidence.benchmarks:
        if not r["device"].startswith("CPU ") and r["audio_s"] == 10:
            systems = cases.setdefault((r["model"], r["device"], r["batch"]), {})
            systems[f"{r['engine']}:{r['precision']}"] = r
    rows = []
    for (model, device, batch), systems in sorted(cases.items()):
        own, base = systems.pop("triton:int8", None), systems.get("torch-cuda:float32")
        if not (own and base):
            continue
        peer = min(systems.values(), key=lambda r: float(r["latency_ms"]))
        low, high = own["ratio_ci95"]
        rows.append((
            model, device, str(batch),
            f"{base['latency_ms']:.2f}",
            f"{peer['latency_ms']:.2f} ({peer['engine']} {peer['precision']})",
            f"{own['latency_ms']:.2f}",
            f"{own['ratio']:.2f} [{low:.2f}, {high:.2f}]",
            f"{peer['latency_ms'] / own['latency_ms']:.2f}",
        ))  # fmt: skip
    header = ("Model", "Device", "Batch", "torch float32, ms", "Fastest torch, ms", "Ours, ms",
              "Times float32 [95 %]", "Times the fastest")  # fmt: skip
    return markdown_table(header, rows)


def _draw(records: list[Record], path: Path) -> None:
    """Points above float with intervals, one row per model: readable on white and on black."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(record.model for record in records))
    style: dict[Any, Any] = {
        "svg.hashsalt": "zqlib", "svg.fonttype": "none", "font.size": 11, "text.color": _GREY,
        "axes.edgecolor": _GREY, "axes.labelcolor": _GREY, "xtick.color": _GREY,
        "ytick.color": _GREY,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(8, 1.4 + 0.8 * len(models)), layout="constrained")
        for height, (system, (label, color)) in enumerate(_SYSTEMS.items()):
            for record in records:
                if (record.scheme, record.calibration) == system and record.delta_ci95:
                    assert record.delta_wer_pct is not None
                    low, high = record.delta_ci95
                    row = models.index(record.model) + 0.22 * (height - 1)
                    axis.plot([low, high], [row, row], color=color, linewidth=3, alpha=0.5)
                    axis.plot(record.delta_wer_pct, row, "o", color=color, label=label)
        axis.axvline(0, color=_GREY, linewidth=1)
        axis.set_yticks(range(len(models)), models)
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.set_xlabel("LibriSpeech test-other (subset): WER above float, points, 95 % interval")
        axis.spines[["top", "right"]].set_visible(False)
        handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False)
        with atomic_output(path) as temporary:
            figure.savefig(temporary, transparent=True, metadata={"Date": None})
        plt.close(figure)


_TABLES: Mapping[str, Callable[[Path, Evidence], str]] = {
    "claims": claims_table,
    "headline": _headline_table,
    "speed": _speed_table,
    "gpu": _gpu_table,
}
