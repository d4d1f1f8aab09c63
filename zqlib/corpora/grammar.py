"""A small grammar of dictated forms: spelled names, numbers, dates, addresses, telephone numbers.

It covers the domain of CMU's AN4 (a form filled in by voice) with words and sentences of its own,
so that a model trained on both learns the same letters, digits and control words. Transcripts are
lower case; a spelled letter is a word of one character, as in AN4.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["LETTERS", "TEST_SHARE_PCT", "draw_sentence", "sentence_split", "spoken_form"]

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
TEST_SHARE_PCT = 5  # of all sentences of two words and more, for each of the two test splits

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
          "eighteen", "nineteen")  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNIT_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth",
                  "ninth")  # fmt: skip
_TEEN_ORDINALS = ("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth",
                  "sixteenth", "seventeenth", "eighteenth", "nineteenth")  # fmt: skip
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september",
           "october", "november", "december")  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_COMMANDS = ("yes", "no", "go", "stop", "start", "help", "repeat", "cancel", "back", "next",
             "save", "quit", "undo", "clear", "okay")  # fmt: skip
_ENTRY_COMMANDS = ("enter", "erase", "rubout", "insert", "find")
_STREETS = ("street", "avenue", "road", "drive", "lane", "court")
_DIRECTIONS = ("north", "south", "east", "west")
_PLACES = (
    "akron albany anchorage ashland aurora bakersfield baltimore bedford boston brooklyn buffalo "
    "burlington cambridge canton charlotte chesapeake chicago clayton cleveland dallas dayton "
    "denver detroit dover durham elkhart fairfax franklin fresno georgetown glenview greenville "
    "hampton harrisburg hartford houston jackson jersey kansas kingston lafayette lancaster "
    "lexington lincoln louisville madison manhattan memphis miami milton mobile nashville newport "
    "norfolk oakland omaha orlando oxford phoenix plymouth portland quincy raleigh reno richmond "
    "rochester salem savannah seattle springfield stockton syracuse tampa toledo tucson tulsa "
    "vernon waco wexford wichita wilmington windsor yonkers zanesville"
).split()
_NAMES = (
    "aaron abigail adams alex alice amanda amy andrew angela anna arthur baker barbara becky "
    "benjamin betty brian bruce campbell carl carol charles chavez chris clark cooper craig cruz "
    "cynthia daniel david deborah dennis diana donald dorothy douglas edward elizabeth emily eric "
    "ethan evans felix fiona florence frank gabriel garcia george gloria gonzalez grace greg "
    "hannah harold harvey heather helen henry hughes isaac jacob janet jason jennifer jessica "
    "johnson jordan joseph joyce juan julia karen katherine keith kelly kenneth kevin kimberly "
    "larry laura lawrence linda lisa louis lucy marcus maria martin matthew maxwell melissa "
    "michelle miller monica morgan murphy nancy nathan nelson nicholas oliver olivia pamela "
    "parker patrick paul peter philip phyllis quentin rachel ralph raymond rebecca reynolds "
    "robert rodriguez roger russell ruth samuel sandra sarah scott simon sophia stanley stewart "
    "susan tanaka teresa thomas timothy tyler ursula valerie vasquez victor vincent virginia "
    "walter watson wayne wendy williams wright xavier yolanda yvonne zachary zimmerman zoe"
).split()

# espeak-ng reads these wrongly in running text ("a" as the article, "rubout" to rhyme with "who");
# the transcript keeps the word, the synthesiser is given a spelling that sounds right
_SPOKEN_FORMS = {
    "a": "eigh",
    "rubout": "rub out",
    "z": "zee",
}


def spoken_form(word: str) -> str:
    """The spelling of a transcript word that makes espeak-ng say it as an American speaker does."""
    return _SPOKEN_FORMS.get(word, word)


def draw_sentence(generator: np.random.Generator) -> str:
    """Draw one transcript of 1 to 18 words from the grammar."""
    weights = np.array([weight for weight, _ in _RULES], dtype=np.float64)
    index = int(generator.choice(len(_RULES), p=weights / weights.sum()))
    return " ".join(_RULES[index][1](generator))


def sentence_split(sentence: str) -> str:
    """The one split, `train`, `mini-clean` or `mini-other`, in which a sentence may occur.

    The choice hangs on a digest of the sentence alone, so no transcript of a test split is ever in
    the training split, whatever the sizes and seeds. Single words are left to training: there are
    too few of them to share out.
    """
    if " " not in sentence:
        return "train"
    percentile = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") % 100
    if percentile < TEST_SHARE_PCT:
        return "mini-clean"
    return "mini-other" if percentile < 2 * TEST_SHARE_PCT else "train"


def _pick(generator: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(generator.integers(len(words)))]


def _digit_string(generator: np.random.Generator, count: int) -> list[str]:
    zero = _pick(generator, ("zero", "oh"))  # a speaker says the one or the other, not both
    return [
        zero if word == "zero" else word
        for word in (_pick(generator, _DIGITS) for _ in range(count))
    ]


def _below_hundred(value: int) -> list[str]:
    if value < 10:
        return [_DIGITS[value]]
    if value < 20:
        return [_TEENS[value - 10]]
    return [_TENS[value // 10 - 2], *([_DIGITS[value % 10]] if value % 10 else [])]


def _cardinal(value: int) -> list[str]:
    words: list[str] = []
    if value >= 1000:
        words += [*_below_hundred(value // 1000), "thousand"]
    if value % 1000 >= 100:
        words += [_DIGITS[value % 1000 // 100], "hundred"]
    rest = value % 100
    if rest and words:
        words.append("and")
    return words + (_below_hundred(rest) if rest or not words else [])


def _ordinal(value: int) -> list[str]:
    if value < 10:
        return [_UNIT_ORDINALS[value - 1]]
    if value < 20:
        return [_TEEN_ORDINALS[value - 10]]
    if value % 10 == 0:
        return [{20: "twentieth", 30: "thirtieth"}[value]]
    return [_TENS[value // 10 - 2], _UNIT_ORDINALS[value % 10 - 1]]


def _number(generator: np.random.Generator) -> list[str]:
    style = generator.integers(4)
    if style == 0:  # evenly over lengths, not over values
        return _cardinal(int(10 ** generator.uniform(0, 4)))
    if style == 1:  # in pairs: "forty two sixteen"
        return [
            word
            for _ in range(generator.integers(1, 4))
            for word in _below_hundred(int(generator.integers(10, 100)))
        ]
    return _digit_string(generator, int(generator.integers(1, 8)))


def _random_letters(generator: np.random.Generator) -> list[str]:
    return [_pick(generator, LETTERS) for _ in range(generator.integers(1, 7))]


def _spelled(generator: np.random.Generator) -> list[str]:
    style = generator.integers(10)
    if style < 4:
        return _random_letters(generator)
    letters = list(_pick(generator, _NAMES if style < 7 else _PLACES))
    if style == 4:  # a name misspelled: no list of names can be learnt by heart
        for index in generator.integers(len(letters), size=2):
            letters[index] = _pick(generator, LETTERS)
    if generator.integers(25) == 0:
        return ["o", "apostrophe", *letters]
    return letters


def _entry(generator: np.random.Generator) -> list[str]:
    command = [_pick(generator, _ENTRY_COMMANDS)]
    style = generator.integers(3)
    if style == 0:
        return command + _number(generator)
    if style == 1:
        return command + _random_letters(generator)
    return command + _code(generator)


def _code(generator: np.random.Generator) -> list[str]:
    return _random_letters(generator) + _number(generator)


def _date(generator: np.random.Generator) -> list[str]:
    month = _pick(generator, _MONTHS)
    day = _ordinal(int(generator.integers(1, 32)))
    year = ["nineteen", *_below_hundred(int(generator.integers(11, 100)))]
    style = generator.integers(5)
    if style == 0:
        return [month, *day]
    if style == 1:
        return ["the", *day, "of", month, *year]
    if style == 2:
        return [_pick(generator, _WEEKDAYS), month, *day]
    return [month, *day, *year]


def _time(generator: np.random.Generator) -> list[str]:
    hour = _below_hundred(int(generator.integers(1, 13)))
    style = generator.integers(4)
    if style == 0:
        return ["half", "past", *hour]
    if style == 1:
        return ["quarter", _pick(generator, ("to", "past")), *hour]
    if style == 2:
        return [*hour, "o'clock"]
    return [*hour, *_below_hundred(int(generator.integers(10, 60))), _pick(generator, "ap"), "m"]


def _telephone(generator: np.random.Generator) -> list[str]:
    local = _digit_string(generator, 7)
    if generator.integers(3) == 0:
        return ["area", "code", *_digit_string(generator, 3), *local]
    return local


def _address(generator: np.random.Generator) -> list[str]:
    number = _number(generator)
    direction = [_pick(generator, _DIRECTIONS)] if generator.integers(3) == 0 else []
    if generator.integers(2):
        return [*number, *direction, *_ordinal(int(generator.integers(1, 32))),
                _pick(generator, _STREETS)]  # fmt: skip
    name = list(_pick(generator, _NAMES + _PLACES)[:7])
    return [*number, *direction, *name, _pick(generator, _STREETS)]


def _command(generator: np.random.Generator) -> list[str]:
    if generator.integers(3) == 0:
        return [_pick(generator, _COMMANDS), _pick(generator, ("page", "line", "box")),
                *_below_hundred(int(generator.integers(1, 100)))]  # fmt: skip
    return [_pick(generator, _COMMANDS)]


def _zip_code(generator: np.random.Generator) -> list[str]:
    return _digit_string(generator, 5)


_RULES: tuple[tuple[float, Callable[[np.random.Generator], list[str]]], ...] = (
    (5.0, _spelled),
    (2.5, _number),
    (3.0, _entry),
    (2.0, _code),
    (1.5, _date),
    (0.7, _time),
    (1.5, _telephone),
    (1.0, _zip_code),
    (1.5, _address),
    (1.0, _command),
)
