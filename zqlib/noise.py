"""Noise: what a synthesis starts from, and the baseline that knows nothing of the model."""

import torch
from torch import Tensor

__all__ = ["noise_batches", "pink_noise"]


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
