"""The generated parts of the book, in MyST Markdown. Paths are those of a checkout's root."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from zqlib.book.claims import Verdict, above_float, findings, read_evidence, read_paper, summary
from zqlib.book.listening import listen
from zqlib.book.tables import markdown_table
from zqlib.files import read_json
from zqlib.results import Record, record_path

__all__ = ["GENERATED", "command", "verdict_with_mark"]

_SPLITS = ("dev-clean", "dev-other", "test-clean", "test-other")
_MARKS = {
    Verdict.REPRODUCED: "✔", Verdict.PARTLY: "◐", Verdict.NOT: "✘", Verdict.UNTESTABLE: "–",
}  # fmt: skip


def command(root: Path, profile: str, notebook: str, parameters: Mapping[str, str] = {}) -> str:
    """The command that runs one experiment, or the part that the parameters choose."""
    source = root / "workflow" / "profiles" / f"{profile}.json"
    assets = source.is_file() and "${ZQ_ASSETS}" in source.read_text(encoding="utf-8")
    chosen = "".join(f" -p {name}={value}" for name, value in parameters.items())
    prefix = "ZQ_ASSETS=path/to/folder " if assets else ""
    return f"{prefix}zq reproduce --profile {profile} --only {notebook}{chosen}"


def _command_of(root: Path, record: Record) -> str:
    chosen = {"models": record.model, "splits": record.split}
    return command(root, record.profile, record.experiment, chosen)


def _page_link(root: Path, profile: str, notebook: str, text: str) -> str:
    page = f"results/{profile}/notebooks/{notebook}.ipynb"
    return f"[{text}](/{page})" if (root / page).is_file() else text


def _evidence_links(root: Path, record: Record) -> str:
    """The page, the record and the command of a figure."""
    path = record_path(root / "results", record).relative_to(root).as_posix()
    page = _page_link(root, record.profile, record.experiment, "page")
    return f"{page}, {{download}}`record </{path}>`, `{_command_of(root, record)}`"


def verdict_with_mark(verdict: Verdict) -> str:
    """The verdict behind a mark that is seen at a glance."""
    return f"{_MARKS[verdict]}\N{NO-BREAK SPACE}{verdict}"


def verdicts(root: Path) -> str:
    """One line per claim, with a link to the section that explains it."""
    paper, evidence = read_paper(root), read_evidence(root)
    rows = []
    for claim in paper["claims"]:
        verdict = summary(findings(paper, claim, evidence))
        source = claim["source"] if claim["sure"] else f"{claim['source']} (not all confirmed)"
        link = f"[{claim['id']}](#{claim['id'].lower()})"
        rows.append((link, verdict_with_mark(verdict), claim["claim"], source))
    return markdown_table(("", "Verdict", "Claim of the paper", "Source"), rows)


def claim_table(claim_id: str, root: Path) -> str:
    """What was run for a claim: paper, ours, delta, verdict; then reasons and ways to records."""
    paper, evidence = read_paper(root), read_evidence(root)
    (claim,) = [claim for claim in paper["claims"] if claim["id"] == claim_id]
    found = findings(paper, claim, evidence)
    rows = [(f.what, f.paper, f.ours, f.delta, verdict_with_mark(f.verdict)) for f in found]
    table = markdown_table(("What was run", "Paper", "Ours", "Delta", "Verdict"), rows)
    notes = [
        f"- {'; '.join(filter(None, [f.what, f.why]))}"
        + (f": {_evidence_links(root, f.record)}" if f.record else "")
        for f in found
        if f.why or f.record
    ]
    return "\n".join([table, "", *notes])


def other_speech(root: Path) -> str:
    """INT8 against float on all that is not LibriSpeech, about which the paper says nothing."""
    rows = [
        (
            f"`{r.model}`", f"{r.corpus} {r.split}", str(r.utterances), f"{r.wer_pct:.2f}",
            above_float(r),
            _page_link(root, r.profile, r.experiment, r.profile),
        )
        for r in read_evidence(root).records
        if (r.experiment, r.scheme, r.calibration) == ("wer", "w8a8", "synthetic")
        if r.corpus != "librispeech" and r.delta_ci95 is not None
    ]  # fmt: skip
    header = ("Model", "Data", "Utterances", "WER %", "Above float [95 %]", "Page")
    return markdown_table(header, rows)


def published_wer(root: Path) -> str:
    """Published float word error rates beside those of the float models here."""
    paper = read_paper(root)
    floats = [
        r
        for r in read_evidence(root).records
        if (r.experiment, r.scheme, r.corpus) == ("wer", "float", "librispeech")
    ]
    rows = []
    for published in paper["float_wer_pct"]:
        cells = []
        for split in _SPLITS:
            theirs = f"{published[split]:g}" if split in published else "–"
            ours = [
                f"{r.wer_pct:.2f} [{r.wer_ci95[0]:.2f}, {r.wer_ci95[1]:.2f}]"
                for r in floats
                if published["name"] in r.model.lower() and r.split == split
            ]
            cells.append(f"{theirs}; ours {', '.join(ours)}" if ours else theirs)
        rows.append((f"`{published['checkpoint']}`", *cells))
    return (
        f"{markdown_table(('Checkpoint', *_SPLITS), rows)}\n\nSource: {paper['float_wer_source']}."
    )


def word_error_rates(root: Path) -> str:
    """Every record of the pages on word error rates, and what to know of them."""
    found = [r for r in read_evidence(root).records if r.experiment == "wer"]
    rows = [
        (
            _page_link(root, r.profile, "wer", r.profile), r.model,
            f"{r.corpus} {r.split} ({r.utterances})",
            f"{r.scheme}, {r.calibration}" if r.delta_ci95 else r.scheme,
            f"{r.wer_pct:.2f}", above_float(r), f"{r.size_mb:.1f}",
        )
        for r in found
    ]  # fmt: skip
    header = ("Profile", "Model", "Data", "System", "WER %", "Above float [95 %]", "MB")
    caveats: dict[str, dict[str, None]] = {}
    for r in found:
        for caveat in r.caveats:
            caveats.setdefault(caveat, {})[f"`{r.model}` on {r.corpus} {r.split}"] = None
    notes = [f"- *{caveat}*: {'; '.join(where)}" for caveat, where in caveats.items()]
    table = markdown_table(header, rows)
    return "\n".join([":::{container} sortable", table, ":::", "", *notes])


def costs(root: Path) -> str:
    """One line per executed notebook: the command, and what it took."""
    rows = []
    for page in sorted(root.glob("results/*/notebooks/*.ipynb")):
        profile, name = page.parents[1].name, page.stem
        measured = page.parents[1] / "costs" / f"{name}.json"
        minutes, memory, device = "not measured yet", "", ""
        if measured.is_file():
            cost = read_json(measured)
            minutes = f"{cost['duration_s'] / 60:.1f}"
            memory, device = f"{cost['peak_memory_mb'] / 1000:.1f}", cost["device"]
        link = _page_link(root, profile, name, f"{profile}: {name}")
        rows.append((link, minutes, memory, f"`{command(root, profile, name)}`", device))
    return markdown_table(("Experiment", "Minutes", "GB", "Command", "Device"), rows)


def expected(root: Path) -> str:
    """What each zero-shot INT8 evaluation must give, and how far off it may be."""
    rows = [
        (
            f"`{r.model}`, {r.corpus} {r.split}", f"{r.wer_pct:.2f}", f"{r.delta_wer_pct:+.2f}",
            f"{r.delta_ci95[0]:+.2f} to {r.delta_ci95[1]:+.2f}", f"{100 / r.words:.2f}",
            f"`{_command_of(root, r)}`",
        )
        for r in read_evidence(root).records
        if (r.experiment, r.scheme, r.calibration) == ("wer", "w8a8", "synthetic")
        if r.delta_ci95 is not None
    ]  # fmt: skip
    header = ("INT8 of", "WER %", "Above float", "Accepted", "One word", "Command")
    return markdown_table(header, rows)


def records(root: Path) -> str:
    """Every record, to download."""
    rows = []
    for path in sorted(root.glob("results/*/*/**/*.json")):
        profile, *kind = path.parent.relative_to(root / "results").parts
        source = path.relative_to(root).as_posix()
        rows.append((profile, "/".join(kind), f"{{download}}`{path.name} </{source}>`"))
    return markdown_table(("Profile", "Kind", "File"), rows)


GENERATED: Mapping[str, Callable[[Path], str]] = {
    "verdicts": verdicts,
    **{f"C{number}": partial(claim_table, f"C{number}") for number in range(1, 7)},
    "other-speech": other_speech,
    "published-wer": published_wer,
    "word-error-rates": word_error_rates,
    "costs": costs,
    "expected": expected,
    "records": records,
    "listen": listen,
}
"""Functions from a checkout's root to Markdown, by the name that the directive takes."""
