"""Training data: distorted copies computed once, batches of like length, masks drawn each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from zqlib.audio import MelFrontEnd, load_audio, pad_features
from zqlib.corpora import augment
from zqlib.corpora.manifest import Utterance
from zqlib.errors import InputError
from zqlib.files import atomic_output
from zqlib.training.config import LABELS

__all__ = ["Batch", "Example", "distort", "load_examples", "make_batch", "plan_epoch"]


@dataclass(frozen=True)
class Example:
    """An utterance ready for training.

    Attributes:
        variants: log-mel features of its distorted copies, (n_mels, frames_i) float16 each; the
            first is the recording as it is.
        target: (characters,) int64, indices into `LABELS`.
        text: the transcript.
    """

    variants: tuple[Tensor, ...]
    target: Tensor
    text: str


@dataclass(frozen=True)
class Batch:
    """features (batch, n_mels, frames), lengths (batch,), targets concatenated, their lengths."""

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor


def load_examples(
    utterances: Sequence[Utterance],
    n_variants: int,
    front_end: MelFrontEnd,
    seed: int,
    cache: Path | None = None,
) -> list[Example]:
    """Read audio and compute the features of `n_variants` copies of each utterance.

    Args:
        utterances: what to read.
        n_variants: copies of each, the recording as it is among them.
        front_end: waveform to features.
        seed: of the distortions.
        cache: a file to keep the features in; the caller names it after all that decides them.

    Raises:
        InputError: unreadable audio, or a transcript with characters outside `LABELS`.
    """
    if cache is not None and cache.is_file():
        stored = torch.load(cache, weights_only=True)
        return [Example(tuple(v), t, u.text) for v, t, u in zip(*stored, utterances, strict=True)]
    examples = []
    for index, utterance in enumerate(tqdm(utterances, desc="features", unit="utt")):
        try:
            target = torch.tensor([LABELS.index(character) for character in utterance.text])
        except ValueError as error:
            raise InputError(
                f"The transcript {utterance.text!r} of {utterance.audio_path} has characters "
                "other than a-z, space and apostrophe; normalise it."
            ) from error
        waveform = load_audio(utterance.audio_path).numpy()
        copies = [waveform] + [
            distort(waveform, np.random.default_rng([seed, index, variant]))
            for variant in range(1, n_variants)
        ]
        features = tuple(front_end(torch.from_numpy(copy)).half() for copy in copies)
        examples.append(Example(features, target, utterance.text))
    if cache is not None:
        with atomic_output(cache) as temporary:
            torch.save(([e.variants for e in examples], [e.target for e in examples]), temporary)
    return examples


def distort(waveform: augment.Waveform, generator: np.random.Generator) -> augment.Waveform:
    """Another speaker in another room: speed and pitch, microphone, reverberation, noise."""
    waveform = augment.change_speed(waveform, round(generator.uniform(0.84, 1.16), 2))
    waveform = augment.colour(waveform, generator.uniform(0, 5), generator)
    if generator.random() < 0.4:
        waveform = augment.reverberate(waveform, generator.uniform(0.1, 0.4), generator)
    if generator.random() < 0.7:
        waveform = augment.add_noise(waveform, generator.uniform(8, 35), generator)
    return waveform


def plan_epoch(
    examples: Sequence[Example], repeats: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[tuple[int, int]]]:
    """The batches of an epoch, each a list of (example, variant).

    Batches hold like lengths, so that little is padded, in a random order; the last, incomplete
    batch is dropped.
    """
    generator = np.random.default_rng([seed, epoch])
    visits: list[tuple[int, int]] = []
    for index, (example, repeat) in enumerate(zip(examples, repeats, strict=True)):
        variants = generator.choice(
            len(example.variants), size=repeat, replace=repeat > len(example.variants)
        )
        visits += [(index, int(variant)) for variant in variants]
    order = [visits[i] for i in generator.permutation(len(visits))]
    pool = batch_size * 16  # sorted by length within a pool, so that batches still differ by epoch
    batches = []
    for start in range(0, len(order), pool):
        chunk = sorted(
            order[start : start + pool],
            key=lambda visit: examples[visit[0]].variants[visit[1]].shape[1],
        )
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    batches = [batch for batch in batches if len(batch) == batch_size]
    if not batches:
        raise InputError(f"There are fewer utterances than one batch of {batch_size}; give more.")
    return [batches[i] for i in generator.permutation(len(batches))]


def make_batch(
    examples: Sequence[Example],
    visits: Sequence[tuple[int, int]],
    pad_to: int,
    mask: tuple[int, int],
    seed: int,
    step: int,
) -> Batch:
    """Collate the visited copies, stretch them in time and frequency, and mask (SpecAugment).

    Args:
        examples: all of them.
        visits: (example, variant) of each row.
        pad_to: frames are padded to a multiple of this.
        mask: the widest band, mels, and the longest stretch, frames, that are masked.
        seed, step: decide the distortions.
    """
    generator = np.random.default_rng([seed, 1, step])
    stretch = generator.uniform(0.9, 1.1)
    features = []
    for index, variant in visits:
        feature = examples[index].variants[variant].float()
        warp = generator.uniform(0.92, 1.08)  # a longer or shorter vocal tract
        feature = _resize(feature, round(feature.shape[1] * stretch), warp)
        features.append(_mask(feature, *mask, generator))
    batch, lengths = pad_features(features, pad_to)
    targets = [examples[index].target for index, _ in visits]
    return Batch(batch, lengths, torch.cat(targets), torch.tensor([len(t) for t in targets]))


def _resize(feature: Tensor, frames: int, warp: float) -> Tensor:
    """Interpolate (n_mels, frames) in time to `frames`, and stretch the mel axis by `warp`."""
    n_mels = feature.shape[0]
    stretched = functional.interpolate(
        feature[None, None],
        size=(round(n_mels * warp), frames),
        mode="bilinear",
        align_corners=False,
    )[0, 0, :n_mels]
    missing = n_mels - stretched.shape[0]
    return (
        functional.pad(stretched[None], (0, 0, 0, missing), mode="replicate")[0]
        if missing
        else stretched
    )


def _mask(
    feature: Tensor, most_mels: int, most_frames: int, generator: np.random.Generator
) -> Tensor:
    """Zero (the mean) two bands and two stretches; at most a fifth of a short utterance."""
    feature = feature.clone()
    n_mels, frames = feature.shape
    for _ in range(2):
        start, width = generator.integers(n_mels), generator.integers(most_mels + 1)
        feature[start : start + width] = 0.0
        start, width = (
            generator.integers(frames),
            generator.integers(min(most_frames, frames // 10) + 1),
        )
        feature[:, start : start + width] = 0.0
    return feature
