"""The espeak-ng binding: samples that depend on the request alone, and clear refusals."""

import subprocess
import sys

import numpy as np
import pytest

from zqlib.corpora.espeak import SpeechRequest, phonemes, speak, variants
from zqlib.errors import InputError

REQUEST = SpeechRequest("enter six five", variant="f2", seed=3)


def test_same_request_gives_same_samples_whatever_was_said_before() -> None:
    first = speak(REQUEST)
    speak(SpeechRequest("something else", variant="Alicia", rate_wpm=200))
    assert np.array_equal(speak(REQUEST), first)


def test_another_process_gives_the_same_samples() -> None:
    program = (
        "import hashlib; from zqlib.corpora.espeak import *;"
        f"print(hashlib.sha256(speak({REQUEST!r}).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_audio_is_speech_like() -> None:
    waveform = speak(REQUEST)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert 0.5 < waveform.shape[0] / 16000 < 3.0
    assert 0.05 < np.abs(waveform).max() <= 1.0


@pytest.mark.parametrize(
    "change",
    [{"variant": "m1"}, {"language": "en-gb-scotland"}, {"pitch": 80}, {"text": "enter six four"}],
)
def test_each_parameter_is_heard(change: dict[str, object]) -> None:
    other = speak(SpeechRequest(**{**vars(REQUEST), **change}))  # type: ignore[arg-type]
    reference = speak(REQUEST)
    length = min(len(other), len(reference))
    assert not np.array_equal(other[:length], reference[:length])


def test_rate_and_word_gap_change_the_duration() -> None:
    text = "one two three four five"
    normal = len(speak(SpeechRequest(text)))
    assert len(speak(SpeechRequest(text, rate_wpm=240))) < 0.9 * normal
    assert len(speak(SpeechRequest(text, word_gap=20))) > 1.1 * normal


def test_sample_rate_is_honoured() -> None:
    ratio = len(speak(REQUEST, sample_rate=16000)) / len(speak(REQUEST, sample_rate=8000))
    assert abs(ratio - 2.0) < 0.01


def test_variants_are_listed() -> None:
    assert {"f1", "m3", "klatt"} <= set(variants())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"text": "  "}, "empty"),
        ({"text": "yes", "variant": "nobody"}, "nobody"),
        ({"text": "yes", "language": "xx-none"}, "xx-none"),
        ({"text": "yes", "rate_wpm": 20}, "rate_wpm"),
        ({"text": "yes", "pitch": 101}, "pitch"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(bad: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        speak(SpeechRequest(**bad))  # type: ignore[arg-type]


def test_phonemes_refuse_empty_text() -> None:
    with pytest.raises(InputError, match="empty"):
        phonemes("")
