"""All forms of one model, on the same utterances."""

from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint, write_corpus

from zqlib.audio import audio_features, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.evaluation import word_error_rate
from zqlib.export.agreement import ENGINES, Agreement, agreement, installed_engines
from zqlib.models import CTCModel
from zqlib.quantization.scheme import QuantScheme
from zqlib.recognition import FloatRecogniser, recognise_manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CTCModel:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 3)


@pytest.fixture(scope="module")
def rows(model: CTCModel, manifest: Path) -> dict[str, Agreement]:
    utterances = read_manifest(manifest)
    batches = [pad_features([audio_features(u.audio_path, model.front_end) for u in utterances])]
    found = agreement(model, batches, QuantScheme(), utterances, progress=False)
    return {row.engine: row for row in found}


def test_engines(rows: dict[str, Agreement]) -> None:
    assert tuple(rows) == installed_engines()
    assert set(ENGINES) - set(rows) <= {"tensorrt-qdq"}


@pytest.mark.parametrize("name", ["reference", "cpu", "onnx-integer"])
def test_integers_are_those_of_the_reference(name: str, rows: dict[str, Agreement]) -> None:
    assert (rows[name].same_tokens_pct, rows[name].max_difference) == (100, 0)
    assert rows[name].wer_pct == rows["reference"].wer_pct


def test_float_onnx_is_the_float_model(
    rows: dict[str, Agreement], model: CTCModel, manifest: Path
) -> None:
    heard = recognise_manifest(FloatRecogniser(model), manifest, progress=False)
    assert rows["float"].wer_pct == word_error_rate(heard).wer_pct == rows["onnx-float"].wer_pct
    assert rows["onnx-float"].same_tokens_pct == rows["float"].same_tokens_pct
    difference = rows["onnx-float"].max_difference - rows["float"].max_difference
    assert abs(difference) < 0.01 * rows["float"].max_difference
    assert rows["float"].max_difference_steps > 1


@pytest.mark.parametrize("name", ["onnx-qdq", "openvino-qdq"])
def test_qdq_is_about_as_far_from_the_reference_as_float_is(
    name: str, rows: dict[str, Agreement]
) -> None:
    assert 0 < rows[name].max_difference < 3 * rows["float"].max_difference


def test_steps_are_those_of_the_logits(rows: dict[str, Agreement]) -> None:
    steps = {
        row.max_difference / row.max_difference_steps for row in rows.values() if row.max_difference
    }
    assert len({round(1e6 * step / max(steps)) for step in steps}) == 1


def test_layers(rows: dict[str, Agreement]) -> None:
    assert rows["float"].layers is rows["reference"].layers is None
    layers = {name: row.layers for name, row in rows.items() if row.layers is not None}
    assert {name: (len(c.integer), len(c.float)) for name, c in layers.items()} == {
        "onnx-integer": (9, 0),
        "onnx-qdq": (9, 0),
        "openvino-qdq": (9, 0),
        "onnx-float": (0, 9),
    }


def test_nothing_to_compare_on(model: CTCModel) -> None:
    noise = [(torch.randn(1, 64, 50), torch.tensor([50]))]
    with pytest.raises(InputError, match="no utterance"):
        agreement(model, noise, QuantScheme(), [], progress=False)


def test_unknown_engine(model: CTCModel) -> None:
    with pytest.raises(InputError, match="'tflite' is unknown; use reference, cpu"):
        agreement(model, [], QuantScheme(), [], ["tflite"], progress=False)
