"""Seeded distortions of a waveform: noise, reverberation, speed and microphone colour."""

import numpy as np
import soxr
from numpy.typing import NDArray

__all__ = ["add_noise", "change_speed", "colour", "reverberate"]

Waveform = NDArray[np.float32]


def add_noise(waveform: Waveform, snr_db: float, generator: np.random.Generator) -> Waveform:
    """Add noise whose spectrum falls by 0 to 6 dB an octave (white to brown), at a power ratio.

    Args:
        waveform: (samples,) float32.
        snr_db: mean speech power over mean noise power, decibels.
        generator: decides the noise and its spectrum.
    """
    samples = waveform.shape[0]
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequency = np.maximum(np.arange(spectrum.shape[0]), 1 + samples // 400)  # flat near 0 hertz
    noise = np.fft.irfft(spectrum * frequency ** -generator.uniform(0, 1), samples)
    power = np.mean(np.square(waveform)) / np.mean(np.square(noise))
    return np.asarray(waveform + noise * np.sqrt(power * 10 ** (-snr_db / 10)), dtype=np.float32)


def reverberate(
    waveform: Waveform, rt60_s: float, generator: np.random.Generator, sample_rate: int = 16000
) -> Waveform:
    """Convolve with a made-up room: a direct path, then noise that decays by 60 dB in `rt60_s`.

    The length and the power of the signal stay the same.
    """
    time_s = np.arange(int(rt60_s * sample_rate)) / sample_rate
    room = generator.standard_normal(time_s.shape[0]) * 10 ** (-3 * time_s / rt60_s)
    room *= np.sqrt(generator.uniform(0.05, 0.5) / np.sum(np.square(room)))  # reverberant to direct
    room[0] = 1.0
    length = waveform.shape[0] + room.shape[0] - 1
    wet = np.fft.irfft(np.fft.rfft(waveform, length) * np.fft.rfft(room, length), length)
    wet = wet[: waveform.shape[0]]
    gain = np.sqrt(np.mean(np.square(waveform)) / np.maximum(np.mean(np.square(wet)), 1e-12))
    return np.asarray(wet * gain, dtype=np.float32)


def change_speed(waveform: Waveform, factor: float, sample_rate: int = 16000) -> Waveform:
    """Play faster (`factor` > 1) or slower; the pitch moves along, as in speed perturbation."""
    stretched = soxr.resample(waveform, sample_rate * factor, sample_rate, quality="HQ")
    return np.asarray(stretched, dtype=np.float32)


def colour(waveform: Waveform, strength_db: float, generator: np.random.Generator) -> Waveform:
    """Filter by a smooth random frequency response, as another microphone would.

    Args:
        waveform: (samples,) float32.
        strength_db: standard deviation of the gain at 8 support points, decibels.
        generator: decides the response.
    """
    spectrum = np.fft.rfft(waveform)
    support = np.linspace(0, spectrum.shape[0] - 1, 8)
    gain_db = np.interp(
        np.arange(spectrum.shape[0]), support, generator.normal(0.0, strength_db, size=8)
    )
    filtered = np.fft.irfft(spectrum * 10 ** (gain_db / 20), waveform.shape[0])
    return np.asarray(filtered, dtype=np.float32)
