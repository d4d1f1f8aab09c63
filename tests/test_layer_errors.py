"""Errors of single tensors: where they are made, and how they pile up."""

import math
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint, write_audio

from zqlib.audio import audio_features
from zqlib.integer import reference
from zqlib.layer_errors import TensorError, tensor_errors
from zqlib.models import CTCModel
from zqlib.quantization.fold import fold
from zqlib.quantization.scheme import QuantScheme, preset
from zqlib.quantized_model import quantize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CTCModel:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def speech(tmp_path: Path, model: CTCModel) -> list[torch.Tensor]:
    paths = [write_audio(tmp_path / f"{i}.wav", 0.5 + 0.2 * i, seed=i) for i in range(3)]
    return [audio_features(path, model.front_end) for path in paths]


def batches(speech: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """To calibrate on what is compared: nothing is clipped, so rounding can be seen alone."""
    return [(x[None], torch.tensor([x.shape[1]])) for x in speech]


def errors(
    model: CTCModel, scheme: QuantScheme, speech: list[torch.Tensor]
) -> dict[str, TensorError]:
    found = tensor_errors(model, batches(speech), scheme, speech)
    return {error.name: error for error in found}


def test_every_quantized_tensor_is_there_in_order(
    model: CTCModel, speech: list[torch.Tensor]
) -> None:
    assert list(errors(model, preset("w8a8"), speech)) == [
        "features", "block0.conv0.out", "block0.relu", "block1.conv0.out", "block1.conv1.relu",
        "block1.conv2.out", "block1.relu", "block2.relu", "logits",
    ]  # fmt: skip


def test_the_first_and_the_last_have_the_errors_that_a_user_can_measure(
    model: CTCModel, speech: list[torch.Tensor]
) -> None:
    found = errors(model, preset("w8a8"), speech)
    integer = quantize(model, batches(speech), preset("w8a8"), {"kind": "real"})
    graph = fold(model.network, preset("w8a8"))
    sums = {name: [0.0, 0.0] for name in ("features", "logits")}
    for x in speech:
        lengths, quantized = torch.tensor([x.shape[1]]), integer.quantize_features(x[None])
        ours = reference.run(integer.program, quantized, lengths).logits.double()
        theirs = graph.run(x[None], lengths)[0].double()
        # a program does not keep the step of its logits: the one that fits best flatters a little
        step = float((ours * theirs).sum() / ours.square().sum())
        pairs = {"features": (quantized * integer.input_scale, x[None]),
                 "logits": (ours * step, theirs)}  # fmt: skip
        for name, (value, true) in pairs.items():
            sums[name][0] += float((true - true.mean()).square().sum())
            sums[name][1] += float((value - true).square().sum())
    for name, (signal, noise) in sums.items():
        assert found[name].total_snr_db == pytest.approx(10 * math.log10(signal / noise), abs=0.5)
    assert found["features"].local_snr_db == found["features"].total_snr_db


def test_fewer_bits_err_more_and_where_they_are_missing(
    model: CTCModel, speech: list[torch.Tensor]
) -> None:
    fine, weights, coarse = (errors(model, preset(n), speech) for n in ("w8a8", "w4a8", "w4a4"))
    for name in list(fine)[1:]:
        assert fine[name].total_snr_db > weights[name].total_snr_db + 6
        assert fine[name].local_snr_db > weights[name].local_snr_db + 3
    assert weights["features"] == fine["features"]
    assert weights["features"].local_snr_db > coarse["features"].local_snr_db + 15
    # 8 bits lose little at one tensor, and what is lost stays lost
    assert all(error.local_snr_db > 25 for error in fine.values())
    assert all(e.total_snr_db < e.local_snr_db + 0.5 for e in fine.values())


def test_what_is_clipped_is_counted(model: CTCModel, speech: list[torch.Tensor]) -> None:
    narrow = errors(model, QuantScheme(range_method="percentile", percentile=90), speech)
    assert narrow["features"].clipped_pct == pytest.approx(10, abs=2)
    assert narrow["features"].local_snr_db < 20
    assert all(e.clipped_pct < 0.5 for e in errors(model, preset("w8a8"), speech).values())
