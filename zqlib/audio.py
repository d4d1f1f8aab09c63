"""Waveform to normalised log-mel features, as NeMo 3.0's AudioToMelSpectrogramPreprocessor.

The front-end is float, as in the paper; dither is off. It works on one utterance at a time, so that
features never depend on what an utterance is batched with (NeMo's batched sums differ in the last
bits). Parity with NeMo itself is tested on real speech.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import soxr
import torch
from torch import Tensor

from zqlib.errors import InputError

__all__ = ["MelConfig", "MelFrontEnd", "audio_features", "load_audio", "pad_features"]

_PREEMPHASIS = 0.97
_LOG_GUARD = 2.0**-24  # added before the logarithm
_MAX_FFT = 1 << 16  # samples; bounds what a hostile config can ask for
_STD_GUARD = 1e-5  # added to the standard deviation


@dataclass(frozen=True)
class MelConfig:
    """Parameters of the log-mel front-end.

    Attributes:
        sample_rate: hertz.
        window_size_s, window_stride_s: seconds.
        n_mels: mel bands.
        n_fft: FFT size, samples.
        pad_to: a batch is padded to a multiple of this many frames (0: not padded).
    """

    sample_rate: int = 16000
    window_size_s: float = 0.02
    window_stride_s: float = 0.01
    n_mels: int = 64
    n_fft: int = 512
    pad_to: int = 16

    def __post_init__(self) -> None:
        counts = (self.sample_rate, self.n_mels, self.n_fft, self.pad_to)
        window = self.sample_rate * self.window_size_s
        hop = self.sample_rate * self.window_stride_s
        sound = 1 <= hop <= self.n_fft <= _MAX_FFT and 1 <= window <= self.n_fft
        sound = sound and min(counts[:3]) >= 1 and self.pad_to >= 0
        if not sound or any(type(count) is not int for count in counts):
            raise InputError(
                "The preprocessor section has an impossible rate, window, FFT size, padding or "
                "band count; check model_config.yaml."
            )

    @classmethod
    def from_nemo(cls, preprocessor: Mapping[str, Any]) -> "MelConfig":
        """Read the `preprocessor` section of a NeMo `model_config.yaml`.

        Raises:
            InputError: the section asks for something that this front-end does not compute.
        """
        supported = {
            "window": "hann",
            "normalize": "per_feature",
            "frame_splicing": 1,
            "preemph": _PREEMPHASIS,
            "log": True,
            "log_zero_guard_type": "add",
            "log_zero_guard_value": _LOG_GUARD,
            "mag_power": 2.0,
            "lowfreq": 0,
            "highfreq": None,
            "pad_value": 0.0,
            "exact_pad": False,
            "mel_norm": "slaney",
            "stft_exact_pad": False,
        }
        for key, value in supported.items():
            if preprocessor.get(key, value) != value:
                raise InputError(
                    f"The preprocessor option {key}={preprocessor[key]!r} is not supported; "
                    f"only {value!r} is."
                )
        try:
            n_mels = int(preprocessor.get("features", 64))
            config = cls(
                sample_rate=int(preprocessor.get("sample_rate", 16000)),
                window_size_s=float(preprocessor.get("window_size", 0.02)),
                window_stride_s=float(preprocessor.get("window_stride", 0.01)),
                n_mels=n_mels,
                n_fft=int(preprocessor.get("n_fft") or 512),
                pad_to=int(preprocessor.get("pad_to", 16)),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"The preprocessor section is malformed ({error}); check model_config.yaml."
            ) from error
        return config


class MelFrontEnd:
    """Log-mel features, normalised per band over the utterance (mean 0, deviation 1).

    Args:
        config: the parameters.
        filters: (n_mels, n_fft / 2 + 1) float32 mel filter bank; Slaney's, from librosa, if not
            given. A checkpoint stores the one that it was trained with.
    """

    def __init__(self, config: MelConfig, filters: Tensor | None = None) -> None:
        self.config = config
        self.hop_length = round(config.sample_rate * config.window_stride_s)
        self._window = torch.hann_window(
            round(config.sample_rate * config.window_size_s), periodic=False
        )
        if filters is None:
            from librosa.filters import mel  # slow to import, and a checkpoint seldom needs it

            filters = torch.from_numpy(
                mel(sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels)
            )
        self.filters = filters

    def __call__(self, waveform: Tensor) -> Tensor:
        """Features of one utterance.

        Args:
            waveform: (samples,) float32 in [-1, 1].

        Returns:
            (n_mels, samples // hop) float32: the valid frames only. NeMo's STFT yields one frame
            more, which its length masks away.

        Raises:
            InputError: fewer than two frames of audio, whose deviation is undefined.
        """
        frames = waveform.shape[0] // self.hop_length
        if frames < 2:
            raise InputError(
                f"The audio has {waveform.shape[0]} samples, shorter than two frames of "
                f"{self.hop_length}; give a longer recording."
            )
        # The order of operations is NeMo's, so that a single utterance gives the same bits.
        emphasised = torch.cat((waveform[:1], waveform[1:] - _PREEMPHASIS * waveform[:-1]))
        spectrum = torch.stft(
            emphasised,
            n_fft=self.config.n_fft,
            hop_length=self.hop_length,
            win_length=self._window.shape[0],
            window=self._window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1))
        log_mel = torch.log(self.filters @ magnitude.pow(2.0) + _LOG_GUARD)[:, :frames]
        centred = log_mel - log_mel.sum(1, keepdim=True) / frames
        deviation = torch.sqrt((centred**2).sum(1, keepdim=True) / (frames - 1.0))
        return centred / (deviation + _STD_GUARD)


def pad_features(features: Sequence[Tensor], pad_to: int = 0) -> tuple[Tensor, Tensor]:
    """Zero-pad a list of utterances to one batch.

    Args:
        features: tensors of shape (n_mels, frames_i), float32.
        pad_to: pad the longest to a multiple of this many frames; 0 or 1 does not.

    Returns:
        (batch, n_mels, frames) float32 and the lengths (batch,) int64, in frames.
    """
    lengths = torch.tensor([feature.shape[1] for feature in features])
    frames = int(lengths.max())
    if pad_to > 1:
        frames += -frames % pad_to
    batch = torch.zeros(len(features), features[0].shape[0], frames)
    for row, feature in zip(batch, features, strict=True):
        row[:, : feature.shape[1]] = feature
    return batch, lengths


def load_audio(path: Path, *, sample_rate: int = 16000, resample: bool = False) -> Tensor:
    """Read a mono FLAC or WAV file.

    One rule: audio of another rate is refused, unless `resample` asks for soxr's high-quality
    resampling.

    Args:
        path: an audio file that libsndfile reads.
        sample_rate: the rate that the model expects, hertz.
        resample: convert other rates instead of refusing them.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        InputError: missing, unreadable, truncated, empty, non-finite, multi-channel or wrong-rate
            audio.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path of the audio file.")
    try:
        with soundfile.SoundFile(path) as audio:
            rate, channels, frames = audio.samplerate, audio.channels, audio.frames
            samples = audio.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"{path} is not a readable FLAC or WAV file ({error}); convert it or copy it again."
        ) from error
    if channels != 1:
        raise InputError(f"{path} has {channels} channels; convert it to mono.")
    if samples.shape[0] == 0:
        raise InputError(f"{path} holds no audio samples; record it again.")
    if samples.shape[0] != frames:
        raise InputError(
            f"{path} is truncated ({samples.shape[0]} of {frames} samples); copy it again."
        )
    waveform = torch.from_numpy(samples[:, 0])
    if not torch.isfinite(waveform).all():
        raise InputError(f"{path} holds samples that are not finite numbers; record it again.")
    if rate == sample_rate:
        return waveform
    if not resample:
        raise InputError(
            f"{path} is sampled at {rate} Hz but the model expects {sample_rate} Hz; "
            "convert it, or pass --resample."
        )
    return torch.from_numpy(soxr.resample(waveform.numpy(), rate, sample_rate, quality="HQ"))


def audio_features(path: Path, front_end: MelFrontEnd, *, resample: bool = False) -> Tensor:
    """`load_audio` at the front-end's rate, then its features: (n_mels, frames) float32.

    Raises:
        InputError: bad audio, or a recording that is too short; the message names the file.
    """
    waveform = load_audio(path, sample_rate=front_end.config.sample_rate, resample=resample)
    try:
        return front_end(waveform)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
