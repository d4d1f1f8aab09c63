"""The grammar: vocabulary, splits, and how its words are pronounced."""

import numpy as np
import pytest

from zqlib.corpora.espeak import phonemes
from zqlib.corpora.grammar import (
    LETTERS,
    TEST_SHARE_PCT,
    draw_sentence,
    sentence_split,
    spoken_form,
)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    generator = np.random.default_rng(7)
    return [draw_sentence(generator) for _ in range(20000)]


def test_vocabulary_is_small_and_holds_the_domain(sentences: list[str]) -> None:
    vocabulary = {word for sentence in sentences for word in sentence.split()}
    assert 100 <= len(vocabulary) <= 150
    assert set(LETTERS) <= vocabulary
    assert {"rubout", "enter", "hundred", "oh", "zero", "twelfth", "thirtieth", "o'clock",
            "apostrophe", "area", "street", "september", "wednesday"} <= vocabulary  # fmt: skip


def test_every_letter_and_digit_is_frequent(sentences: list[str]) -> None:
    words = [word for sentence in sentences for word in sentence.split()]
    for word in (*LETTERS, "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
        assert words.count(word) > len(words) / 1000, word


def test_sentences_are_what_a_ctc_model_can_spell(sentences: list[str]) -> None:
    assert set("".join(sentences)) <= set("abcdefghijklmnopqrstuvwxyz' ")
    assert all(sentence == " ".join(sentence.split()) for sentence in sentences)
    assert max(len(sentence.split()) for sentence in sentences) <= 18


def test_sentences_are_varied_and_seeded(sentences: list[str]) -> None:
    assert len(set(sentences)) > 0.6 * len(sentences)
    generator = np.random.default_rng(7)
    assert [draw_sentence(generator) for _ in range(100)] == sentences[:100]
    generator = np.random.default_rng(8)
    assert [draw_sentence(generator) for _ in range(100)] != sentences[:100]


def test_splits_take_their_share_and_single_words_stay_in_training(sentences: list[str]) -> None:
    distinct = [sentence for sentence in set(sentences) if " " in sentence]
    for split in ("mini-clean", "mini-other"):
        share_pct = 100 * sum(sentence_split(s) == split for s in distinct) / len(distinct)
        assert abs(share_pct - TEST_SHARE_PCT) < 1
    assert {sentence_split(s) for s in sentences if " " not in s} == {"train"}


LETTER_NAMES = {
    "a": "eI", "b": "bi:", "c": "si:", "d": "di:", "e": "i:", "f": "Ef", "g": "dZi:", "h": "eItS",
    "i": "aI", "j": "dZeI", "k": "keI", "l": "El", "m": "Em", "n": "En", "o": "oU", "p": "pi:",
    "q": "kju:", "r": "A@", "s": "Es", "t": "ti:", "u": "ju:", "v": "vi:", "w": "dVb@Lju:",
    "x": "Eks", "y": "waI", "z": "zi:",
}  # fmt: skip


def bare(mnemonics: str) -> str:
    """Drop stress and linking marks."""
    return mnemonics.translate(str.maketrans("", "", "',;_-"))


@pytest.mark.parametrize("language", ["en-us", "en"])
@pytest.mark.parametrize("letter", LETTERS)
def test_letters_are_spoken_by_name_in_running_text(letter: str, language: str) -> None:
    spoken = phonemes(f"five {spoken_form(letter)} two", language).split()
    assert len(spoken) == 3
    assert bare(spoken[1]) == LETTER_NAMES[letter]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("rubout", "rVb aUt"),
        ("nine", "naIn"),
        ("twelfth", "twElfT"),
        ("erase", "I#reIs"),
        ("thirty", "T3:t#i"),
        ("march", "mA@tS"),
        ("june", "dZu:n"),
        ("hundred", "hVndrI2d"),
    ],
)
def test_words_are_spoken_as_words(word: str, expected: str) -> None:
    assert bare(phonemes(spoken_form(word))) == expected
