"""The mel front-end against NeMo's own, and the refusal of bad audio."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from zqlib.audio import MelConfig, MelFrontEnd, load_audio, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError

QUARTZNET = MelConfig(window_size_s=0.02, n_mels=64, pad_to=16)
CONFORMER = MelConfig(window_size_s=0.025, n_mels=80, pad_to=0)


def assert_equals_nemo(config: MelConfig, waveforms: list[torch.Tensor]) -> None:
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    theirs = AudioToMelSpectrogramPreprocessor(
        sample_rate=config.sample_rate,
        window_size=config.window_size_s,
        window_stride=config.window_stride_s,
        features=config.n_mels,
        n_fft=config.n_fft,
        pad_to=config.pad_to,
        dither=0.0,
    ).eval()
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    samples = torch.tensor([len(w) for w in waveforms])
    expected, expected_lengths = theirs(input_signal=padded, length=samples)
    front_end = MelFrontEnd(config)
    actual, lengths = pad_features([front_end(w) for w in waveforms], config.pad_to)
    assert torch.equal(lengths, expected_lengths)
    frames = int(lengths.max())
    assert (actual[:, :, :frames] - expected[:, :, :frames]).abs().max() < 1e-4
    if config.pad_to:
        assert actual.shape[2] % config.pad_to == 0


@pytest.mark.parametrize("config", [QUARTZNET, CONFORMER], ids=["64 mels", "80 mels"])
def test_front_end_equals_nemo_on_real_speech(config: MelConfig, assets: Path) -> None:
    for manifest in ("librispeech/test-clean.jsonl", "an4/test.jsonl"):
        utterances = read_manifest(assets / "speech" / manifest)[:6]
        assert_equals_nemo(config, [load_audio(u.audio_path) for u in utterances])


@pytest.mark.parametrize("config", [QUARTZNET, CONFORMER], ids=["64 mels", "80 mels"])
@pytest.mark.parametrize("samples", [320, 1599, 16000, 16159, 16160])
def test_front_end_equals_nemo_at_frame_edges(config: MelConfig, samples: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    waveform = 0.1 * torch.randn(samples, generator=generator)
    assert_equals_nemo(config, [waveform, waveform[: samples * 2 // 3 + 160]])


def test_features_do_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(n, generator=generator) for n in (8000, 5000)]
    front_end = MelFrontEnd(QUARTZNET)
    batch, lengths = pad_features([front_end(w) for w in waveforms], 16)
    assert torch.equal(batch[1, :, : lengths[1]], front_end(waveforms[1]))
    assert not batch[1, :, lengths[1] :].any()


def write(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_flac_and_wav_are_read(tmp_path: Path, suffix: str) -> None:
    samples = np.linspace(-0.5, 0.5, 4000)
    waveform = load_audio(write(tmp_path / f"a{suffix}", samples))
    assert waveform.dtype == torch.float32
    assert np.abs(waveform.numpy() - samples).max() < 1e-4


def test_wrong_rate_is_refused_unless_resampling_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.sin(np.arange(8000) / 10), 8000)
    with pytest.raises(InputError, match="8000 Hz but the model expects 16000 Hz"):
        load_audio(path)
    assert abs(load_audio(path, resample=True).shape[0] - 16000) <= 1


def test_bad_audio_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    whole = write(tmp_path / "whole.flac", noise)
    truncated = tmp_path / "truncated.flac"
    truncated.write_bytes(whole.read_bytes()[:20000])
    text = tmp_path / "text.wav"
    text.write_text("this is not audio")
    blank = tmp_path / "blank.wav"
    blank.touch()
    not_a_number = tmp_path / "nan.wav"
    soundfile.write(not_a_number, np.full(4000, np.nan), 16000, subtype="FLOAT")
    for path, message in [
        (tmp_path / "absent.wav", "does not exist"),
        (write(tmp_path / "empty.wav", np.zeros(0)), "no audio samples"),
        (write(tmp_path / "stereo.wav", np.zeros((4000, 2))), "2 channels"),
        (truncated, "truncated|not a readable"),
        (text, "not a readable"),
        (blank, "not a readable"),
        (not_a_number, "not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            load_audio(path)


def test_audio_shorter_than_two_frames_is_refused() -> None:
    with pytest.raises(InputError, match="shorter than two frames"):
        MelFrontEnd(QUARTZNET)(torch.zeros(319))


def test_unsupported_preprocessor_option_is_refused() -> None:
    with pytest.raises(InputError, match="normalize='all_features'"):
        MelConfig.from_nemo({"normalize": "all_features"})
