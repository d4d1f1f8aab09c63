"""Greedy CTC decoding, and word error rates scored from stored hypotheses.

Hypotheses are what a run leaves; every score is computed from them afterwards, so that a reader
can score them again in another way.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
from torch import Tensor

from zqlib.errors import InputError
from zqlib.files import atomic_output

__all__ = [
    "Hypothesis",
    "PairedDifference",
    "WordErrorRate",
    "best_path",
    "decode_batch",
    "greedy_ctc",
    "hypothesis_line",
    "paired_difference",
    "parse_hypothesis",
    "read_hypotheses",
    "word_error_rate",
    "write_hypotheses",
]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Hypothesis:
    """What a recogniser heard.

    Attributes:
        utterance: names the recording within its manifest.
        reference: what was said.
        text: what was recognised.
    """

    utterance: str
    reference: str
    text: str


@dataclass(frozen=True)
class WordErrorRate:
    """Substitutions, deletions and insertions per 100 reference words.

    Attributes:
        wer_pct: per cent.
        ci95: the 95 % interval, bootstrapped over utterances.
        words: reference words.
        utterances: number of utterances.
    """

    wer_pct: float
    ci95: tuple[float, float]
    words: int
    utterances: int


@dataclass(frozen=True)
class PairedDifference:
    """WER of b minus WER of a on the same utterances, in points.

    Attributes:
        delta_wer_pct: points.
        ci95: the 95 % interval, both systems resampled together.
    """

    delta_wer_pct: float
    ci95: tuple[float, float]


def best_path(tokens: Sequence[int], blank: int) -> list[int]:
    """Token ids of valid frames with repeats merged, then the blank, the last class, dropped."""
    return [token for token, _ in itertools.groupby(tokens) if token < blank]


def greedy_ctc(tokens: Sequence[int], labels: Sequence[str]) -> str:
    """Merge repeats, drop blanks, join: the text of the best path.

    Word pieces mark the start of a word, as sentencepiece does, by U+2581.

    Args:
        tokens: token ids of the valid frames; the blank is `len(labels)`.
        labels: the text of each class.
    """
    text = "".join(labels[token] for token in best_path(tokens, len(labels)))
    return " ".join(text.replace("\u2581", " ").split())


def decode_batch(tokens: Tensor, lengths: Tensor, labels: Sequence[str]) -> list[str]:
    """`greedy_ctc` for token ids (batch, frames) and lengths (batch,)."""
    return [
        greedy_ctc(row[:length].tolist(), labels)
        for row, length in zip(tokens, lengths, strict=True)
    ]


def hypothesis_line(hypothesis: Hypothesis) -> str:
    """One line of a file of hypotheses, with its end."""
    return json.dumps(vars(hypothesis), ensure_ascii=False) + "\n"


def parse_hypothesis(line: str) -> Hypothesis:
    """The inverse of `hypothesis_line`.

    Raises:
        InputError: the line is not a hypothesis.
    """
    try:
        hypothesis = Hypothesis(**json.loads(line))
        if not all(isinstance(value, str) for value in vars(hypothesis).values()):
            raise TypeError("a value is not text")
        return hypothesis
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{line[:80]!r} is not a stored hypothesis; recognise again.") from error


def write_hypotheses(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_output(path) as temporary:
        temporary.write_text("".join(map(hypothesis_line, hypotheses)), encoding="utf-8")


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read stored hypotheses.

    Raises:
        InputError: the file is missing or a line is not a hypothesis.
    """
    try:
        # not splitlines(), which would also split inside a text, at U+2028 for one
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The hypotheses {path} cannot be read ({error}).") from error
    return [parse_hypothesis(line) for line in lines if line]


def word_error_rate(hypotheses: Sequence[Hypothesis]) -> WordErrorRate:
    """Score hypotheses.

    Raises:
        InputError: there is no utterance, or a reference without words.
    """
    errors, words = _counts(hypotheses)
    samples = _resample(errors, words)
    return WordErrorRate(
        wer_pct=100 * float(errors.sum() / words.sum()),
        ci95=_interval(samples),
        words=int(words.sum()),
        utterances=len(hypotheses),
    )


def paired_difference(a: Sequence[Hypothesis], b: Sequence[Hypothesis]) -> PairedDifference:
    """Compare two systems on the same utterances.

    Raises:
        InputError: the two lists are not of the same utterances in the same order.
    """
    if [(x.utterance, x.reference) for x in a] != [(x.utterance, x.reference) for x in b]:
        raise InputError("A paired comparison needs hypotheses of the same utterances.")
    errors_a, words = _counts(a)
    errors_b, _ = _counts(b)
    difference = errors_b - errors_a
    return PairedDifference(
        delta_wer_pct=100 * float(difference.sum() / words.sum()),
        ci95=_interval(_resample(difference, words)),
    )


def _counts(hypotheses: Sequence[Hypothesis]) -> tuple[np.ndarray, np.ndarray]:
    """Word errors and reference words per utterance, (utterances,) int64."""
    if not hypotheses:
        raise InputError("There is no utterance to score.")
    errors, words = [], []
    for item in hypotheses:
        if not item.reference.split():
            raise InputError(f"The reference of {item.utterance} has no words; WER is undefined.")
        result = jiwer.process_words(item.reference, item.text)
        errors.append(result.substitutions + result.deletions + result.insertions)
        words.append(len(item.reference.split()))
    return np.array(errors), np.array(words)


def _resample(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """WER (per cent) of bootstrap samples of utterances, seeded."""
    draws = np.random.default_rng(0).integers(len(errors), size=(_RESAMPLES, len(errors)))
    rates: np.ndarray = 100 * errors[draws].sum(1) / words[draws].sum(1)
    return rates


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)
