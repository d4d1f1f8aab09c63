"""NeMo JSONL manifests: one utterance a line, audio paths relative to the manifest's folder."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zqlib.errors import InputError
from zqlib.files import atomic_output

__all__ = ["Utterance", "read_manifest", "write_manifest"]


@dataclass(frozen=True)
class Utterance:
    """A recording and what was said in it.

    Attributes:
        audio_path: the audio file.
        duration_s: seconds.
        text: the reference transcript, lower case, words separated by one space.
    """

    audio_path: Path
    duration_s: float
    text: str


def read_manifest(path: Path) -> list[Utterance]:
    """Read a manifest.

    Raises:
        InputError: the manifest is missing or empty, or a line is not JSON, lacks
            `audio_filepath`, `duration` or `text`, or has a duration that is not positive.
    """
    try:
        # not splitlines(), which would also split inside a text, at U+2028 for one
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The manifest {path} cannot be read ({error}); check the path."
        ) from error
    utterances = [
        _parse(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not utterances:
        raise InputError(f"The manifest {path} lists no utterance; give one line per recording.")
    return utterances


def _parse(path: Path, number: int, line: str) -> Utterance:
    try:
        entry = json.loads(line)
        audio_filepath, duration_s, text = (
            entry["audio_filepath"],
            float(entry["duration"]),
            entry["text"],
        )
        if not isinstance(audio_filepath, str) or not isinstance(text, str):
            raise TypeError("audio_filepath and text must be strings")
        if "\0" in audio_filepath:
            raise ValueError("audio_filepath holds a NUL")
        if not (duration_s > 0 and math.isfinite(duration_s)):
            raise ValueError(f"duration {duration_s} is not positive")
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"Line {number} of {path} is not a manifest entry ({error!r}); it needs "
            "audio_filepath, duration and text."
        ) from error
    return Utterance(path.parent / audio_filepath, duration_s, text)


def write_manifest(path: Path, utterances: Sequence[Utterance]) -> None:
    """Write a manifest atomically; audio below its folder is named by a relative path.

    Other audio is named by its absolute path.
    """
    lines = []
    folder = path.parent.absolute()
    for utterance in utterances:
        audio_path = utterance.audio_path.absolute()  # `..` is kept: links may be on the way
        if audio_path.is_relative_to(folder):
            audio_path = audio_path.relative_to(folder)
        entry = {
            "audio_filepath": audio_path.as_posix(),
            "duration": round(utterance.duration_s, 4),
            "text": utterance.text,
        }
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    with atomic_output(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
