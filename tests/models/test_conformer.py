"""Parity of the plain-torch Conformer with NeMo's own modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import assert_equals_nemo_on_real_speech

from zqlib.errors import InputError
from zqlib.models import load_model
from zqlib.models.conformer import (
    ConformerConfig,
    ConformerCTC,
    relative_positions,
    relative_shift,
)
from zqlib.models.nemo import write_nemo
from zqlib.synthesis import SynthesisConfig, synthesize

VOCABULARY = ["<unk>", "\u2581the", "s", "\u2581a", "t"]


def conformer(**encoder: Any) -> dict[str, Any]:
    """A config with two narrow layers."""
    options = {
        "feat_in": 20, "feat_out": -1, "n_layers": 2, "d_model": 32, "n_heads": 4,
        "subsampling": "striding", "subsampling_factor": 4, "subsampling_conv_channels": 24,
        "ff_expansion_factor": 4, "self_attention_model": "rel_pos", "xscaling": True,
        "att_context_size": [-1, -1], "untie_biases": True, "conv_kernel_size": 7,
        "conv_norm_type": "batch_norm", "dropout": 0.1,
    }  # fmt: skip
    decoder = {"feat_in": options["d_model"], "num_classes": 5, "vocabulary": VOCABULARY}
    return {
        "encoder": options | encoder,
        "decoder": decoder | {"feat_in": (options | encoder)["d_model"]},
    }


def nemo_pair(config: dict[str, Any]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """NeMo's encoder and decoder for a config, nothing in them left at zero or one."""
    from nemo.collections.asr.modules import ConformerEncoder, ConvASRDecoder

    torch.manual_seed(0)
    encoder, decoder = ConformerEncoder(**config["encoder"]), ConvASRDecoder(**config["decoder"])
    for name, parameter in encoder.named_parameters():
        if "pos_bias" in name or ("norm" in name and name.endswith("bias")):
            parameter.data.normal_(0, 0.3)
        elif "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return encoder.eval(), decoder.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"xscaling": False, "n_heads": 2, "feat_in": 23},
        {"untie_biases": False, "subsampling_conv_channels": -1, "conv_kernel_size": 31},
    ],
    ids=str,
)
def test_equals_nemo(options: dict[str, Any]) -> None:
    config = conformer(**options)
    encoder, decoder = nemo_pair(config)
    ours = ConformerCTC(ConformerConfig.from_nemo(config)).eval()
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    ours.load_state_dict(state)  # strict: the keys are NeMo's own
    lengths = torch.tensor([90, 61, 4, 1])
    features = torch.randn(4, config["encoder"]["feat_in"], 90)
    with torch.no_grad():
        encoded, nemo_lengths = encoder(audio_signal=features, length=lengths)
        expected = decoder(encoder_output=encoded)
        actual, actual_lengths = ours(features, lengths)
    assert actual_lengths.tolist() == nemo_lengths.tolist() == [23, 16, 1, 1]
    for row, other, valid in zip(actual, expected, actual_lengths, strict=True):
        assert (row[:valid] - other[:valid]).abs().max() < 1e-4


def test_real_checkpoint_equals_nemo_on_real_speech(conformer_nemo: Path, assets: Path) -> None:
    assert_equals_nemo_on_real_speech(conformer_nemo, assets)


@pytest.mark.parametrize(
    ("n_layers", "d_model", "heads", "classes", "millions"),
    [(16, 176, 4, 1024, 13.15), (18, 512, 8, 28, 121.45)],
    ids=["small", "large"],
)
def test_known_sizes(
    n_layers: int, d_model: int, heads: int, classes: int, millions: float
) -> None:
    config = ConformerConfig(80, n_layers, d_model, heads, classes, d_model)
    with torch.device("meta"):
        network = ConformerCTC(config)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_medium_has_the_tensors_of_nemo() -> None:
    from nemo.collections.asr.modules import ConformerEncoder

    config = conformer(feat_in=80, n_layers=18, d_model=256, subsampling_conv_channels=256)
    with torch.device("meta"):
        ours = ConformerCTC(ConformerConfig.from_nemo(config)).encoder.state_dict()
    theirs = ConformerEncoder(**config["encoder"]).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_relative_shift_reads_the_column_of_each_distance() -> None:
    frames = 5
    scores = torch.randn(2, 3, frames, 2 * frames - 1)
    shifted = relative_shift(scores)
    for i in range(frames):
        for j in range(frames):
            column = frames - 1 - (i - j)
            assert torch.equal(shifted[:, :, i, j], scores[:, :, i, column])


def test_relative_positions_do_not_depend_on_the_number_of_frames() -> None:
    few, many = relative_positions(3, 8), relative_positions(7, 8)
    assert few.shape == (5, 8)
    assert torch.equal(few, many[4:-4])
    assert few[2].tolist() == [0, 1] * 4  # distance 0: every sine 0, every cosine 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("subsampling", "vggnet"),
        ("subsampling_factor", 8),
        ("causal_downsampling", True),
        ("self_attention_model", "abs_pos"),
        ("att_context_size", [128, 128]),
        ("conv_norm_type", "layer_norm"),
        ("conv_context_size", "causal"),
        ("reduction", "pooling"),
        ("feat_out", 64),
        ("use_bias", False),
    ],
)
def test_unsupported_option_is_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        ConformerConfig.from_nemo(conformer(**{option: value}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "heads"),
        ({"d_model": 33, "n_heads": 1}, "even d_model"),
        ({"conv_kernel_size": 8}, "odd"),
        ({"n_layers": 0}, "outside 1"),
        ({"n_layers": 1 << 20}, "outside 1"),
        ({"feat_in": "80"}, "no integer"),
        ({"n_layers": 2.0}, "no integer"),
        ({"xscaling": "yes"}, "no integer"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConformerConfig.from_nemo(conformer(**options))


@pytest.mark.parametrize("section", ["encoder", "decoder"])
def test_an_incomplete_config_is_refused(section: str) -> None:
    config = conformer()
    for missing in list(config[section]):
        part = {k: v for k, v in config[section].items() if k != missing}
        try:
            ConformerConfig.from_nemo(config | {section: part})
        except InputError as error:
            assert missing in str(error)
    with pytest.raises(InputError, match=section):
        ConformerConfig.from_nemo({k: v for k, v in config.items() if k != section})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A narrow random Conformer as a checkpoint."""
    encoder, decoder = nemo_pair(conformer())
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    write_nemo(tmp_path / "tiny.nemo", archive_config(), state)
    return tmp_path / "tiny.nemo"


def archive_config() -> dict[str, Any]:
    config = conformer()
    config["encoder"]["_target_"] = "nemo.collections.asr.modules.ConformerEncoder"
    config["preprocessor"] = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000, "normalize": "per_feature", "window_size": 0.025,
        "window_stride": 0.01, "window": "hann", "features": 20, "n_fft": 512, "pad_to": 0,
    }  # fmt: skip
    return config


def test_a_batch_hears_what_each_utterance_alone_does(tiny: Path) -> None:
    network = load_model(tiny).network
    features = torch.randn(3, 20, 120)
    lengths = torch.tensor([120, 77, 9])
    with torch.no_grad():
        together, frames = network(features, lengths)
        for row, length, valid, whole in zip(features, lengths, frames, together, strict=True):
            alone, _ = network(row[None, :, :length], length[None])
            assert torch.allclose(alone[0], whole[:valid], atol=1e-5)


def test_synthesis_approaches_the_statistics_of_a_conformer(tiny: Path) -> None:
    network = load_model(tiny).network
    config = SynthesisConfig(batches=1, batch_size=2, frames=64, min_frames=48, steps=10)
    (batch,) = synthesize(network, 20, config, progress=False)
    loss = batch.loss.sum(1)
    assert batch.loss.shape == (11, 2)  # a BatchNorm in each layer's convolution module
    assert loss[-1] < 0.9 * loss[0]
