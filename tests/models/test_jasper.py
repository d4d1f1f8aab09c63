"""Parity of the plain-torch QuartzNet and Jasper with NeMo's own modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import assert_equals_nemo_on_real_speech

from zqlib.errors import InputError
from zqlib.models.jasper import BlockConfig, JasperConfig, JasperCTC


def nemo_pair(config: dict[str, Any]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """NeMo's encoder and decoder for a config, with random BatchNorm statistics."""
    from nemo.collections.asr.modules import ConvASRDecoder, ConvASREncoder

    torch.manual_seed(0)
    encoder = ConvASREncoder(**{k: v for k, v in config["encoder"].items() if k != "_target_"})
    decoder = ConvASRDecoder(**{k: v for k, v in config["decoder"].items() if k != "_target_"})
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return encoder.eval(), decoder.eval()


def jasper_dr(width: float) -> dict[str, Any]:
    """JasperDR-10x5 (figures from Li et al. 2019, table 1), its channels scaled by `width`."""
    plan = [(256, 1, 11, 2, 1, False)]
    for filters, kernel in ((256, 11), (384, 13), (512, 17), (640, 21), (768, 25)):
        plan += [(filters, 5, kernel, 1, 1, True)] * 2
    plan += [(896, 1, 29, 1, 2, False), (1024, 1, 1, 1, 1, False)]
    blocks = [
        {
            "filters": int(filters * width),
            "repeat": repeat,
            "kernel": [kernel],
            "stride": [stride],
            "dilation": [dilation],
            "dropout": 0.0,
            "residual": residual,
            **({"residual_dense": True} if residual else {}),
        }
        for filters, repeat, kernel, stride, dilation, residual in plan
    ]
    vocabulary = list(" abcdefghijklmnopqrstuvwxyz'")
    return {
        "encoder": {"feat_in": 64, "activation": "relu", "conv_mask": True, "jasper": blocks},
        "decoder": {
            "feat_in": int(1024 * width),
            "num_classes": len(vocabulary),
            "vocabulary": vocabulary,
        },
    }


def assert_parity(config: dict[str, Any], features: torch.Tensor, lengths: torch.Tensor) -> None:
    encoder, decoder = nemo_pair(config)
    ours = JasperCTC(JasperConfig.from_nemo(config)).eval()
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    ours.load_state_dict(state)  # strict: the keys are NeMo's own
    with torch.no_grad():
        encoded, nemo_lengths = encoder(audio_signal=features, length=lengths)
        expected = decoder(encoder_output=encoded)
        actual, actual_lengths = ours(features, lengths)
    assert torch.equal(actual_lengths, nemo_lengths)
    assert (actual - expected).abs().max() < 1e-4


def test_jasper_dr_equals_nemo() -> None:
    """The dense-residual topology of JasperDR-10x5, at an eighth of its width (5 M parameters)."""
    torch.manual_seed(1)
    assert_parity(jasper_dr(1 / 8), torch.randn(2, 64, 160), torch.tensor([160, 97]))


def test_jasper_dr_full_width_has_333_million_parameters() -> None:
    with torch.device("meta"):
        network = JasperCTC(JasperConfig.from_nemo(jasper_dr(1.0)))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 332.63


def test_quartznet_equals_nemo_on_real_speech(quartznet_nemo: Path, assets: Path) -> None:
    assert_equals_nemo_on_real_speech(quartznet_nemo, assets)


@pytest.mark.parametrize(
    ("option", "value"), [("se", True), ("groups", 2), ("residual_mode", "max"), ("surprise", 1)]
)
def test_unsupported_block_option_is_refused(option: str, value: object) -> None:
    block = {"filters": 8, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1]}
    with pytest.raises(InputError, match=option):
        BlockConfig.from_nemo(block | {option: value})


@pytest.mark.parametrize("sizes", [{"kernel": 4}, {"repeat": 0}, {"stride": 2, "dilation": 2}])
def test_impossible_block_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError):
        BlockConfig(**({"filters": 8, "repeat": 1, "kernel": 3} | sizes))
