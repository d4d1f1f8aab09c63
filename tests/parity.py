"""Parity of a checkpoint with NeMo itself, on real speech."""

from pathlib import Path

import torch

from zqlib.audio import load_audio, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.export.onnx_float import export_float
from zqlib.export.runtime import open_session
from zqlib.models import load_model
from zqlib.quantization.fold import fold
from zqlib.quantization.scheme import QuantScheme


def assert_equals_nemo_on_real_speech(checkpoint: Path, assets: Path) -> None:
    """Log-probabilities within 1e-4, one utterance at a time and in a padded batch.

    Those of the float ONNX export, in ONNX Runtime, within 1e-3.
    """
    from nemo.collections.asr.models import ASRModel

    model = load_model(checkpoint)
    reference = ASRModel.restore_from(str(checkpoint), map_location="cpu").eval()
    exported = open_session(export_float(fold(model.network, QuantScheme())))
    front_end, pad_to = model.front_end, model.front_end.config.pad_to
    manifest = read_manifest(assets / "speech" / "librispeech" / "test-clean.jsonl")
    utterances = sorted(manifest, key=lambda u: u.duration_s)[:4]
    waveforms = [load_audio(u.audio_path) for u in utterances]
    with torch.no_grad():
        for waveform in waveforms:  # waveform to log-probabilities, one utterance at a time
            features, lengths = pad_features([front_end(waveform)], pad_to)
            actual, actual_lengths = model.network(features, lengths)
            expected, expected_lengths, _ = reference(
                input_signal=waveform[None], input_signal_length=torch.tensor([len(waveform)])
            )
            assert torch.equal(actual_lengths, expected_lengths)
            valid = int(actual_lengths)
            assert (actual[0, :valid] - expected[0, :valid]).abs().max() < 1e-4
            inputs = {"audio_signal": features.numpy(), "length": lengths.numpy()}
            (log_probs,) = exported.run(["logprobs"], inputs)
            assert (torch.from_numpy(log_probs)[0, :valid] - expected[0, :valid]).abs().max() < 1e-3
        # A padded batch, from the same features: NeMo's own features change with the batch.
        features, lengths = pad_features([front_end(w) for w in waveforms], pad_to)
        actual, actual_lengths = model.network(features, lengths)
        encoded, expected_lengths = reference.encoder(audio_signal=features, length=lengths)
        expected = reference.decoder(encoder_output=encoded)
    assert torch.equal(actual_lengths, expected_lengths)
    for ours, theirs, valid in zip(actual, expected, actual_lengths, strict=True):
        assert (ours[:valid] - theirs[:valid]).abs().max() < 1e-4
