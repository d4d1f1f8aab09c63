"""Speech from text with espeak-ng: a small binding over the library of `espeakng-loader`.

The same request gives the same samples, whatever was said before. espeak-ng keeps state between
utterances (noise, flutter and echo go on where they stopped) that no function of its interface
resets, so every utterance loads the library afresh and unloads it afterwards: 5 ms each.
"""

import _ctypes
import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import espeakng_loader
import numpy as np
import soxr
from numpy.typing import NDArray

from zqlib.errors import InputError

__all__ = ["SpeechRequest", "phonemes", "speak", "variants"]

# constants of espeak-ng's speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POSITION_IS_CHARACTERS = 1
_TEXT_IS_UTF8 = 1
_PHONEMES_AS_MNEMONICS = 0
_RATE, _PITCH, _PITCH_RANGE, _WORD_GAP = 1, 3, 4, 7

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class SpeechRequest:
    """All that decides the samples of an utterance.

    Attributes:
        text: what to say, English.
        language: an espeak-ng language, such as `en-us`.
        variant: a voice variant of `variants()`, such as `f3`.
        rate_wpm: words per minute, 80 to 450.
        pitch: 0 to 100, 50 is the voice's own.
        pitch_range: 0 (monotone) to 100, 50 is the voice's own.
        word_gap: pause between words, in units of 10 ms at the default rate.
        seed: of the noise in breath and fricatives.
    """

    text: str
    language: str = "en-us"
    variant: str = "m3"
    rate_wpm: int = 160
    pitch: int = 50
    pitch_range: int = 50
    word_gap: int = 0
    seed: int = 0


def variants() -> list[str]:
    """Names of the voice variants that the installed espeak-ng carries, sorted."""
    return sorted(path.name for path in _data_folder().joinpath("voices", "!v").iterdir())


def speak(request: SpeechRequest, sample_rate: int = 16000) -> NDArray[np.float32]:
    """Say a text.

    Returns:
        (samples,) float32 in [-1, 1] at `sample_rate` hertz, mono.

    Raises:
        InputError: empty text, an unknown language or variant, or a parameter out of range.
    """
    _check(request)
    pcm = bytearray()

    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if count:
            pcm.extend(ctypes.string_at(samples, 2 * count))
        return 0  # carry on

    callback = _Callback(collect)  # must outlive the synthesis
    with _Library() as library:
        library.handle.espeak_SetSynthCallback(callback)
        library.handle.espeak_ng_SetRandSeed(ctypes.c_long(request.seed))
        library.set_voice(request.language, request.variant)
        for parameter, value in (
            (_RATE, request.rate_wpm),
            (_PITCH, request.pitch),
            (_PITCH_RANGE, request.pitch_range),
            (_WORD_GAP, request.word_gap),
        ):
            library.handle.espeak_SetParameter(parameter, value, 0)
        text = request.text.encode() + b"\0"
        status = library.handle.espeak_Synth(
            text,
            ctypes.c_size_t(len(text)),
            0,
            _POSITION_IS_CHARACTERS,
            0,
            _TEXT_IS_UTF8,
            None,
            None,
        )
        own_rate = library.sample_rate
    if status != 0 or not pcm:
        raise InputError(f"espeak-ng said nothing for {request.text!r}; give it readable English.")
    samples = np.frombuffer(bytes(pcm), dtype=np.int16).astype(np.float32) / 32768.0
    resampled = soxr.resample(samples, own_rate, sample_rate, quality="HQ")
    return np.asarray(np.clip(resampled, -1.0, 1.0), dtype=np.float32)


def phonemes(text: str, language: str = "en-us") -> str:
    """How espeak-ng would say a text, in its own mnemonics, to check pronunciations without ears.

    Raises:
        InputError: empty text or an unknown language.
    """
    _check(SpeechRequest(text, language))
    clauses: list[str] = []
    with _Library() as library:
        library.set_voice(language, None)
        rest = ctypes.c_char_p(text.encode())
        translate = library.handle.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        while rest.value:  # one clause a call; the pointer moves on and is null at the end
            clauses.append(
                translate(ctypes.byref(rest), _TEXT_IS_UTF8, _PHONEMES_AS_MNEMONICS).decode()
            )
    return " ".join(clauses).strip()


class _Library:
    """A private, freshly initialised copy of the shared library for the time of a `with` block."""

    def __enter__(self) -> "_Library":
        self.handle = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = int(
            self.handle.espeak_Initialize(
                _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(_data_folder()).encode(), _INITIALIZE_DONT_EXIT
            )
        )
        if self.sample_rate <= 0:
            raise InputError("espeak-ng found no data; install espeakng-loader again.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.handle.espeak_Terminate()
        _ctypes.dlclose(self.handle._handle)

    def set_voice(self, language: str, variant: str | None) -> None:
        name = language if variant is None else f"{language}+{variant}"
        if self.handle.espeak_SetVoiceByName(name.encode()) != 0:
            raise InputError(f"espeak-ng has no language {language!r}; use en-us or en.")


def _data_folder() -> Path:
    return Path(espeakng_loader.get_data_path())


def _check(request: SpeechRequest) -> None:
    if not request.text.strip():
        raise InputError("The text to speak is empty; give at least one word.")
    # an unknown variant would be ignored by espeak-ng without a word
    if request.variant not in variants():
        raise InputError(f"espeak-ng has no voice variant {request.variant!r}; see variants().")
    for name, value, low, high in (
        ("rate_wpm", request.rate_wpm, 80, 450),
        ("pitch", request.pitch, 0, 100),
        ("pitch_range", request.pitch_range, 0, 100),
        ("word_gap", request.word_gap, 0, 100),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} must be between {low} and {high}, not {value}.")
