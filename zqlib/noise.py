"""Noise: what a synthesis starts from, and the baseline that knows nothing of the model."""

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["noise_batches", "pink_noise", "speech_shaped_noise"]

_FRAMES_PER_S = 100
_SHORTEST = 10  # frames of a phrase or a pause
_PHRASE, _PAUSE = 60.0, 25.0  # how many more they have, on average
_SYLLABLES_PER_S = (3.0, 5.0)  # where the modulation spectrum of speech has its maximum
_VALLEY = 0.4  # loudness between two syllables, of 1
_ONSET = 9  # frames in which loudness goes up or down
_LOUDNESS = 1.2  # what a phrase is above a pause, in deviations of the pink noise
_IN_PAUSES = 0.35  # how much of that noise pauses keep


def pink_noise(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(batch, n_mels, frames): white noise divided by its frequency, normalised per band.

    One cycle over all bands counts as four over all frames: neighbouring bands differ less than
    distant moments do.
    """
    _, n_mels, frames = shape
    spectrum = torch.fft.rfft2(torch.randn(shape, generator=generator))
    cycles_in_time = torch.fft.rfftfreq(frames) * frames
    cycles_over_bands = torch.fft.fftfreq(n_mels)[:, None] * n_mels
    frequency = torch.hypot(cycles_in_time, 4 * cycles_over_bands).clamp(min=1)
    noise = torch.fft.irfft2(spectrum / frequency, s=(n_mels, frames))
    deviation, mean = torch.std_mean(noise, dim=2, keepdim=True)
    normalised: Tensor = (noise - mean) / deviation
    return normalised


def speech_shaped_noise(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(batch, n_mels, frames): pink noise in phrases with pauses, normalised per band.

    Speech is loud and quiet in all bands at once, and between phrases hardly anything happens. In
    such a stretch filters over time settle, and reach values that noise without pauses never
    drives them to.
    """
    noise, loudness = pink_noise(shape, generator), _loudness(shape[0], shape[2], generator)
    shaped = _LOUDNESS * loudness + noise * (_IN_PAUSES + (1 - _IN_PAUSES) * loudness)
    deviation, mean = torch.std_mean(shaped, dim=2, keepdim=True)
    normalised: Tensor = (shaped - mean) / deviation
    return normalised


def _loudness(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """(batch, 1, frames), from 0 to 1: phrases of syllables, and pauses."""
    rows = []
    for _ in range(batch):
        speaks = bool(torch.rand((), generator=generator) < 0.5)
        stretches: list[Tensor] = []
        while sum(map(len, stretches)) < frames:
            mean = _PHRASE if speaks else _PAUSE
            more = -mean * math.log1p(-float(torch.rand((), generator=generator)))
            stretches.append(torch.full((_SHORTEST + int(more),), float(speaks)))
            speaks = not speaks
        slowest, fastest = _SYLLABLES_PER_S
        rate, phase = torch.rand(2, generator=generator).tolist()
        seconds = torch.arange(frames) / _FRAMES_PER_S
        cycles = (slowest + (fastest - slowest) * rate) * seconds + phase
        syllables = (1 + _VALLEY) / 2 + (1 - _VALLEY) / 2 * torch.sin(2 * math.pi * cycles)
        rows.append(torch.cat(stretches)[:frames] * syllables)
    window = torch.hann_window(_ONSET + 2, periodic=False)[1:-1]
    kernel = (window / window.sum())[None, None]
    return functional.conv1d(torch.stack(rows)[:, None], kernel, padding=_ONSET // 2)


def noise_batches(
    n_mels: int, batches: int, batch_size: int, frames: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Gaussian noise, N(0, 1) per mel: the baseline without any information from the model.

    Real features are normalised to mean 0 and deviation 1 per mel, so this matches their first two
    moments and nothing else.

    Returns:
        `batches` pairs of features (batch, n_mels, frames) float32 and lengths (batch,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((batch_size,), frames)
    return [
        (torch.randn(batch_size, n_mels, frames, generator=generator), lengths)
        for _ in range(batches)
    ]
