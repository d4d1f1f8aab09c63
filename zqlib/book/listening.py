"""A few utterances of the mini corpus to hear, and what float and integer models make of them."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from zqlib.book.tables import markdown_table
from zqlib.corpora.mini import build_mini_corpus
from zqlib.evaluation import Hypothesis, read_hypotheses
from zqlib.results import Record, read_records

__all__ = ["listen", "write_audio"]

Heard = Mapping[str, tuple[list[Hypothesis], list[Hypothesis]]]
"""What each model hears on a split: in float, and as W8A8 integers calibrated on synthetic data."""


def listen(root: Path) -> str:
    """A player and a table of transcripts for each utterance; Markdown."""
    parts = []
    for split, index, heard in _examples(root):
        name = _file_name(split, index)
        said = next(iter(heard.values()))[0][index].reference
        rows = [
            (f"`{model}`", floats[index].text, integers[index].text)
            for model, (floats, integers) in sorted(heard.items())
        ]
        parts += [
            f"**{split}**, utterance {index}: “{said}”",
            f'<audio controls preload="none" src="../_static/{name}" aria-label="{said}"></audio>',
            markdown_table(("Model", "Float", "Integer, W8A8"), rows),
        ]
    return "\n\n".join(parts)


def write_audio(root: Path, folder: Path) -> None:
    """Write the FLAC files that `listen` names; the mini corpus is made as far as they need it."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = [(split, index) for split, index, _ in _examples(root)]
    sizes = {split: index + 1 for split, index in examples}  # the later index of a split wins
    corpus = folder.parent / "mini"
    build_mini_corpus(corpus, list(sizes), sizes=sizes)
    for split, index in examples:
        name = _file_name(split, index)
        shutil.copy(corpus / split / name, folder / name)


def _file_name(split: str, index: int) -> str:
    return f"{split}-{index:05d}.flac"


def _examples(root: Path) -> Iterator[tuple[str, int, Heard]]:
    """Of each split the first utterance, and the first on which float and integer differ."""
    if not any(root.glob("results/quick/records/*.json")):
        return
    records = [r for r in read_records(root / "results", "quick") if r.experiment == "wer"]
    for split in sorted({record.split for record in records}):
        here = [record for record in records if record.split == split]
        heard = {
            record.model: (_hypotheses(root, record), _hypotheses(root, integer))
            for record in here
            for integer in here
            if record.scheme == "float" and integer.model == record.model
            if (integer.scheme, integer.calibration) == ("w8a8", "synthetic")
        }
        differing = [
            index
            for floats, integers in heard.values()
            for index, (a, b) in enumerate(zip(floats, integers, strict=True))
            if a.text != b.text
        ]
        for index in sorted({0, *sorted(differing)[:1]}):
            yield split, index, heard


def _hypotheses(root: Path, record: Record) -> list[Hypothesis]:
    return read_hypotheses(root / "results" / record.profile / record.hypotheses)
