"""A narrow random Conformer of two layers, features for it, and its integer program."""

import torch
from torch import Tensor

from zqlib.integer.program import Program
from zqlib.models.conformer import ConformerConfig, ConformerCTC
from zqlib.models.layers import BatchNorm
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.fold_conformer import fold_conformer
from zqlib.quantization.lower import lower
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weights import quantize_weights

N_MELS, CLASSES = 20, 9
LENGTHS = torch.tensor([120, 77, 9])


def network() -> ConformerCTC:
    """Nothing in it is left at zero or one."""
    config = ConformerConfig(N_MELS, 2, 16, 4, CLASSES, 6, ff_expansion=2, conv_kernel=7)
    torch.manual_seed(3)
    result = ConformerCTC(config).eval().requires_grad_(False)
    for name, parameter in result.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.normal_(0, 0.3)
        elif "pos_bias" in name:
            parameter.normal_(0, 0.3)
    for module in result.modules():
        if isinstance(module, BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.05, 0.2)
    return result


def features() -> Tensor:
    """(3, N_MELS, 120) float32, zero beyond `LENGTHS`."""
    values = torch.randn(3, N_MELS, 120, generator=torch.Generator().manual_seed(5))
    return values * (torch.arange(120) < LENGTHS[:, None])[:, None]


def lowered(network: ConformerCTC, features: Tensor, scheme: QuantScheme) -> tuple[Program, Tensor]:
    """The program, and the quantized features."""
    graph = fold_conformer(network, scheme)
    scales = calibrate(graph, [(features, LENGTHS)], scheme)
    limit = 2 ** (scheme.activation_bits - 1)
    quantized = torch.round(features / scales[graph.input]).clamp(-limit, limit - 1)
    graph = quantize_weights(graph, scales, [(features, LENGTHS)], scheme)
    return lower(graph, scales, scheme), quantized.to(torch.int8)
