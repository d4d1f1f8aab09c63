"""CTC decoding, WER against counts by hand, intervals, and hypotheses in files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zqlib.errors import InputError
from zqlib.evaluation import (
    Hypothesis,
    decode_batch,
    greedy_ctc,
    hypothesis_line,
    paired_difference,
    parse_hypothesis,
    read_hypotheses,
    word_error_rate,
    write_hypotheses,
)

LABELS = (" ", "a", "b", "c")
BLANK = 4


def heard(*pairs: tuple[str, str]) -> list[Hypothesis]:
    return [Hypothesis(f"{index}.wav", *pair) for index, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([], ""),
        ([BLANK, BLANK], ""),
        ([1], "a"),
        ([1, 1, 1], "a"),
        ([1, BLANK, 1], "aa"),
        ([1, 1, BLANK, BLANK, 1, 2, 2, BLANK], "aab"),
        ([BLANK, 1, BLANK, 2], "ab"),
        ([1, 2, 1], "aba"),
        ([1, 0, 2], "a b"),
        ([0, 1, 0, BLANK, 0, 2, 0], "a b"),  # spaces at the ends, and two in a row
    ],
)
def test_greedy_ctc(tokens: list[int], text: str) -> None:
    assert greedy_ctc(tokens, LABELS) == text


def test_word_pieces_become_words() -> None:
    assert greedy_ctc([0, 4, 1, 1, 2, 3, 0], ("\u2581no", "w", "\u2581he", "re")) == "now here no"


def test_a_batch_is_read_up_to_each_length() -> None:
    tokens = torch.tensor([[1, 2, 3, 3], [2, BLANK, 2, 1]])
    assert decode_batch(tokens, torch.tensor([2, 3]), LABELS) == ["ab", "bb"]


@pytest.mark.parametrize(
    ("reference", "text", "errors"),
    [
        ("one two three", "one two three", 0),
        ("one two three", "one too three", 1),  # a substitution
        ("one two three", "one three", 1),  # a deletion
        ("one two three", "one two and three", 1),  # an insertion
        ("one two three", "", 3),
        ("one", "a b c d", 4),  # above 100 %
        ("one two three four", "two three four five", 2),  # shifted: one gone, one more
    ],
)
def test_wer_against_a_count_by_hand(reference: str, text: str, errors: int) -> None:
    score = word_error_rate(heard((reference, text)))
    assert score.words == len(reference.split())
    assert score.wer_pct == pytest.approx(100 * errors / score.words)


def test_wer_weighs_utterances_by_their_words() -> None:
    score = word_error_rate(heard(("a b c d e f g h i", "a b c d e f g h i"), ("j", "k")))
    assert (score.wer_pct, score.words, score.utterances) == (pytest.approx(10), 10, 2)


def test_the_interval_of_a_constant_rate_is_a_point() -> None:
    score = word_error_rate(heard(*[("a b", "a x")] * 20))
    assert score.ci95 == (50, 50)


def test_the_interval_holds_the_rate_and_narrows_with_more_data() -> None:
    few = word_error_rate(heard(*[("a b", "a b"), ("a b", "a x"), ("a b", "a b")] * 10))
    many = word_error_rate(heard(*[("a b", "a b"), ("a b", "a x"), ("a b", "a b")] * 100))
    for score in (few, many):
        assert 0 <= score.ci95[0] < score.wer_pct < score.ci95[1] <= 100
    width = few.ci95[1] - few.ci95[0]
    # 30 utterances with probability 1/3 of one error in two words: 1.96 standard errors each side
    assert width == pytest.approx(2 * 1.96 * 50 * np.sqrt(2 / 9 / 30), rel=0.1)
    assert many.ci95[1] - many.ci95[0] == pytest.approx(width / np.sqrt(10), rel=0.1)


def test_the_interval_is_the_same_every_time() -> None:
    hypotheses = heard(("a b", "a"), ("c", "c"), ("d e f", "d e"))
    assert word_error_rate(hypotheses) == word_error_rate(hypotheses)


def test_a_paired_difference_is_that_of_the_rates() -> None:
    a = heard(("a b", "a b"), ("c d", "c x"), ("e", "e"))
    b = heard(("a b", "a x"), ("c d", "c d"), ("e", "y"))
    delta = paired_difference(a, b)
    assert delta.delta_wer_pct == pytest.approx(
        word_error_rate(b).wer_pct - word_error_rate(a).wer_pct
    )
    assert delta.ci95[0] < delta.delta_wer_pct < delta.ci95[1]
    assert paired_difference(b, a).delta_wer_pct == pytest.approx(-delta.delta_wer_pct)


def test_equal_systems_do_not_differ_however_bad() -> None:
    """What pairing is for: the utterances' own difficulty is no part of the interval."""
    a = heard(("a b", "x"), ("c d", "c d"), ("e", "y"))
    delta = paired_difference(a, a)
    assert (delta.delta_wer_pct, delta.ci95) == (0, (0, 0))
    assert word_error_rate(a).ci95[0] < word_error_rate(a).ci95[1]


@pytest.mark.parametrize("other", ["order", "name", "reference", "fewer"])
def test_only_the_same_utterances_are_paired(other: str) -> None:
    a = heard(("a", "a"), ("b", "b"))
    b = {
        "order": a[::-1],
        "name": [a[0], Hypothesis("9.wav", "b", "b")],
        "reference": heard(("a", "a"), ("c", "b")),
        "fewer": a[:1],
    }[other]
    with pytest.raises(InputError, match="same utterances"):
        paired_difference(a, b)


def test_nothing_and_wordless_references_are_refused() -> None:
    with pytest.raises(InputError, match="no utterance"):
        word_error_rate([])
    with pytest.raises(InputError, match=r"1\.wav has no words"):
        word_error_rate(heard(("a", "a"), (" ", "a")))


def test_hypotheses_survive_a_file(tmp_path: Path) -> None:
    hypotheses = heard(
        ("plain", "plane"), ("", ""), ('"quoted" \\', "\ttab"), ("zwölf", "日本"),
        ("line\u2028separator", "next\x85line\x0b\x0c\x1c"), ("two\nlines\r", "x"),
    )  # fmt: skip
    path = tmp_path / "new" / "hypotheses.jsonl"
    write_hypotheses(path, hypotheses)
    assert read_hypotheses(path) == hypotheses
    assert path.read_bytes().count(b"\n") == len(hypotheses)
    assert [parse_hypothesis(hypothesis_line(item)) for item in hypotheses] == hypotheses


def test_an_empty_file_has_no_hypotheses(tmp_path: Path) -> None:
    write_hypotheses(tmp_path / "none.jsonl", [])
    assert read_hypotheses(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        "not json", "[1, 2, 3]", "5", "null", "{}", '{"utterance": "a", "reference": "b"}',
        '{"utterance": "a", "reference": "b", "text": "c", "more": 1}',
        '{"utterance": "a", "reference": "b", "text": 5}', '{"utterance": "a", "refer', "[" * 99999,
    ],
    ids=lambda line: line[:45],
)  # fmt: skip
def test_damaged_lines_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(hypothesis_line(Hypothesis("a", "b", "c")) + line + "\n")
    with pytest.raises(InputError, match="not a stored hypothesis"):
        read_hypotheses(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"\xff\xfe")
    for name in ("absent", "latin1", "."):
        with pytest.raises(InputError, match="cannot be read"):
            read_hypotheses(tmp_path / name)
