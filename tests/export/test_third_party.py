"""A runtime that knows nothing of zqlib transcribes with an exported file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sherpa_onnx
import soundfile

from zqlib.corpora.get import get_corpus
from zqlib.corpora.manifest import read_manifest
from zqlib.evaluation import Hypothesis, word_error_rate

MODELS = sorted((Path(__file__).parents[2] / "zqlib" / "checkpoints").glob("mini-*.nemo"))
MEL_BANDS = 64


@pytest.mark.parametrize("checkpoint", MODELS, ids=lambda path: path.stem)
def test_sherpa_onnx_transcribes(
    checkpoint: Path, zq: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Its front-end is its own, so the words are compared with what was said."""
    file = tmp_path / "model.onnx"
    fast = ("--synthesis", "reduced", "--steps", "2", "--quiet")
    assert zq("export", checkpoint, "--to", "onnx", "-o", file, *fast)[0] == 0
    recogniser = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        model=str(file), tokens=str(file.with_suffix(".tokens.txt")), feature_dim=MEL_BANDS
    )
    heard = []
    (manifest,) = get_corpus("mini", tmp_path / "mini", ("mini-clean",)).values()
    for utterance in read_manifest(manifest)[:8]:
        samples, rate = soundfile.read(utterance.audio_path, dtype="float32")
        stream = recogniser.create_stream()
        stream.accept_waveform(rate, samples)
        recogniser.decode_stream(stream)
        heard.append(Hypothesis(utterance.audio_path.name, utterance.text, stream.result.text))
    assert word_error_rate(heard).wer_pct < 20
