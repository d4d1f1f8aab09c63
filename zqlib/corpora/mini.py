"""The embedded `mini` corpus: sentences of `grammar` spoken by espeak-ng, always the same bytes.

Splits:
    train: for training only, about 4 hours.
    mini-clean: unseen sentences, voices of the training split.
    mini-other: unseen sentences and unseen voices, with noise, reverberation and changes of speed.

No transcript of a test split occurs in another split (`grammar.sentence_split`).
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from zqlib.corpora import augment, espeak, grammar
from zqlib.corpora.manifest import Utterance, write_manifest
from zqlib.errors import InputError
from zqlib.files import atomic_output, read_json, sha256_file, write_json

__all__ = ["SPLIT_SIZES", "TEST_VOICES", "TRAINING_VOICES", "build_mini_corpus"]

SPLIT_SIZES: Mapping[str, int] = {"train": 4800, "mini-clean": 100, "mini-other": 100}
SAMPLE_RATE = 16000

TEST_VOICES = ("belinda", "benjamin", "edward2", "f5", "grandpa", "klatt4", "linda", "m7",
               "quincy", "steph", "victor", "zac")  # fmt: skip
TRAINING_VOICES = ("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2",
                   "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike",
                   "Storm", "adam", "anika", "announcer", "antonio", "aunty", "boris", "david",
                   "ed", "edward", "f1", "f2", "f3", "f4", "grandma", "gustave", "ian", "iven",
                   "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt", "klatt2", "klatt3",
                   "m1", "m2", "m3", "m4", "m5", "m6", "m8", "marcelo", "max", "michel", "miguel",
                   "mike2", "norbert", "pablo", "paul", "pedro", "rob", "robert", "sandro",
                   "shelby", "steph2", "steph3", "travis")  # fmt: skip
# left out: robots, whispers and jokes, and two (Reed, caleb) whose samples differ from run to run

_LANGUAGES = ("en-us", "en-us-nyc", "en", "en-gb-scotland")
_LANGUAGE_SHARES = (0.6, 0.15, 0.15, 0.1)
_STREAMS = {"train": 0, "mini-clean": 1, "mini-other": 2}  # part of the seed: never renumber


def build_mini_corpus(
    root: Path,
    splits: Sequence[str] = ("mini-clean", "mini-other"),
    seed: int = 0,
    sizes: Mapping[str, int] = SPLIT_SIZES,
) -> dict[str, Path]:
    """Make the asked-for splits below a folder: `<split>.jsonl` and 16-bit FLAC in `<split>/`.

    A split that is there and was made alike is left alone; one begun is continued; one made with
    another seed, size or version is made anew.

    Args:
        root: the corpus folder, created when missing.
        splits: among `train`, `mini-clean` and `mini-other`.
        seed: of sentences, voices and distortions; 0 or more.
        sizes: utterances per split.

    Returns:
        the manifest of each split.

    Raises:
        InputError: an unknown split, a bad seed or size, or a folder that holds something else.
    """
    for split in splits:
        if split not in _STREAMS:
            raise InputError(f"The mini corpus has no split {split!r}; use {', '.join(_STREAMS)}.")
        if sizes.get(split, 0) < 1:
            raise InputError(f"The split {split} needs a size of at least one utterance.")
    if seed < 0:
        raise InputError(f"The seed must be 0 or more, not {seed}.")
    return {split: _build_split(root, split, seed, sizes[split]) for split in splits}


def _build_split(root: Path, split: str, seed: int, size: int) -> Path:
    manifest, folder = root / f"{split}.jsonl", root / split
    origin, origin_path = _origin(seed, size), folder / "origin.json"
    made_by = read_json(origin_path) if origin_path.is_file() else None
    if made_by == origin and manifest.is_file():
        return manifest
    if made_by is None and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} holds files that are not of this corpus; choose another folder."
        )
    if made_by != origin:
        manifest.unlink(missing_ok=True)
        for stale in folder.glob("*.flac"):
            stale.unlink()
        write_json(origin_path, origin)
    utterances = []
    sentences = _sentences(split, seed, size)
    for index, sentence in enumerate(tqdm(sentences, desc=f"mini corpus, {split}", unit="utt")):
        path = folder / f"{split}-{index:05d}.flac"
        if not path.is_file():
            waveform = _render(
                split, sentence, np.random.default_rng([seed, _STREAMS[split], index])
            )
            with atomic_output(path) as temporary:
                soundfile.write(temporary, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        utterances.append(Utterance(path, soundfile.info(path).duration, sentence))
    write_manifest(manifest, utterances)
    return manifest


def _origin(seed: int, size: int) -> dict[str, Any]:
    """All that decides the bytes of a split: equal origins mean equal audio."""
    modules = (augment, espeak, grammar)
    sources = [Path(__file__), *(Path(str(module.__file__)) for module in modules)]
    return {
        "seed": seed,
        "utterances": size,
        "sources": {source.name: sha256_file(source) for source in sources},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("espeakng-loader", "numpy", "soxr", "soundfile")
        },
    }


def _sentences(split: str, seed: int, size: int) -> list[str]:
    generator = np.random.default_rng([seed, _STREAMS[split]])
    sentences: list[str] = []
    seen: set[str] = set()
    while len(sentences) < size:
        sentence = grammar.draw_sentence(generator)
        if grammar.sentence_split(sentence) != split or (split != "train" and sentence in seen):
            continue
        seen.add(sentence)
        sentences.append(sentence)
    return sentences


def _render(split: str, sentence: str, generator: np.random.Generator) -> NDArray[np.float32]:
    """Speak a sentence with a random voice; (samples,) float32."""
    voices = TEST_VOICES if split == "mini-other" else TRAINING_VOICES
    words = [grammar.spoken_form(word) for word in sentence.split()]
    comma_share = generator.choice((0.0, 0.0, 0.3, 1.0))  # speakers who pause, and who do not
    commas = generator.random(len(words)) < comma_share
    request = espeak.SpeechRequest(
        text="".join(
            f"{word}, " if comma else f"{word} " for word, comma in zip(words, commas, strict=True)
        ),
        language=str(generator.choice(_LANGUAGES, p=_LANGUAGE_SHARES)),
        variant=str(generator.choice(voices)),
        rate_wpm=int(generator.integers(110, 210)),
        pitch=int(generator.integers(25, 76)),
        pitch_range=int(generator.integers(20, 81)),
        word_gap=int(generator.choice((0, 0, 2, 5, 10))),
        seed=int(generator.integers(1, 2**31)),
    )
    waveform = espeak.speak(request, SAMPLE_RATE)
    before, after = (0.3 * SAMPLE_RATE * generator.random(2)).astype(int)
    waveform = np.pad(waveform, (before, after))
    if split == "mini-other":
        waveform = augment.change_speed(waveform, generator.uniform(0.9, 1.1))
        waveform = augment.reverberate(waveform, generator.uniform(0.15, 0.4), generator)
        waveform = augment.add_noise(waveform, generator.uniform(10, 25), generator)
    else:  # no room is as silent as a synthesiser
        waveform = augment.add_noise(waveform, generator.uniform(30, 50), generator)
    peak = generator.uniform(0.1, 0.9)
    return np.asarray(waveform * (peak / np.abs(waveform).max()), dtype=np.float32)
