"""Small networks, features and programs that several test modules build on."""

from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from zqlib.integer.program import ACCUMULATOR, Argmax, Conv1d, Program, TensorType
from zqlib.models.conformer import ConformerConfig, ConformerCTC
from zqlib.models.jasper import BlockConfig, JasperConfig, JasperCTC
from zqlib.models.layers import BatchNorm
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.fold_conformer import fold_conformer
from zqlib.quantization.lower import lower
from zqlib.quantization.scheme import QuantScheme

N_MELS = 8
N_CLASSES = 5

reproducible = settings(deadline=None, derandomize=True, max_examples=60)
"""Settings of every property test: the same examples each time, and no clock."""

BLOCKS = {
    "separable": (
        BlockConfig(12, 1, 5, stride=2, separable=True),
        BlockConfig(16, 2, 3, dilation=2, separable=True),
    ),
    "dense": (BlockConfig(12, 1, 3, stride=2), BlockConfig(10, 2, 5)),
    "residual": (
        BlockConfig(12, 1, 5, stride=2, separable=True),
        BlockConfig(12, 3, 3, residual=True, separable=True),
        BlockConfig(16, 2, 5, residual=True),
        BlockConfig(10, 1, 1),
    ),
    "dense residual": (
        BlockConfig(12, 1, 3, stride=2),
        BlockConfig(12, 2, 3, residual=True, residual_dense=True),
        BlockConfig(16, 2, 5, residual=True, residual_dense=True),
        BlockConfig(14, 1, 3, residual=True, residual_dense=True),
        BlockConfig(10, 1, 3, dilation=2),
    ),
}


def network(topology: str, seed: int = 0) -> JasperCTC:
    """A network of one of `BLOCKS`, with BatchNorm layers that do something."""
    generator = torch.Generator().manual_seed(seed)
    result = JasperCTC(JasperConfig(N_MELS, BLOCKS[topology], N_CLASSES)).eval()
    for parameter in result.parameters():
        parameter.requires_grad_(False).normal_(0, 0.3, generator=generator)
    for module in result.modules():
        if isinstance(module, BatchNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.2, 2.0, generator=generator)
    return result


def features(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(batch, N_MELS, longest) float32, zero beyond each length, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(len(lengths), N_MELS, max(lengths), generator=generator)
    for row, length in zip(batch, lengths, strict=True):
        row[:, length:] = 0
    return batch, torch.tensor(lengths)


def lowered(
    topology: str, scheme: QuantScheme | None = None, seed: int = 0
) -> tuple[Program, float]:
    """The integer program of a network, and the scale of its input."""
    scheme = scheme or QuantScheme()
    graph = fold(network(topology, seed), scheme)
    scales = calibrate(graph, [features([80, 60], seed + 1)], scheme)
    return lower(graph, scales, scheme), scales[graph.input]


def conformer() -> ConformerCTC:
    """Two narrow random layers, nothing in them left at zero or one, for 20 mel bands."""
    config = ConformerConfig(20, 2, 16, 4, 9, 6, ff_expansion=2, conv_kernel=7)
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


def lowered_conformer(
    network: ConformerCTC, features: Tensor, lengths: Tensor, scheme: QuantScheme
) -> tuple[Program, Tensor]:
    """The program, and the quantized features."""
    graph = fold_conformer(network, scheme)
    scales = calibrate(graph, [(features, lengths)], scheme)
    limit = 2 ** (scheme.activation_bits - 1)
    quantized = torch.round(features / scales[graph.input]).clamp(-limit, limit - 1)
    return lower(graph, scales, scheme), quantized.to(torch.int8)


def integers(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Uniform random integers in [low, high]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def single_conv(
    weight: Tensor, bias: Tensor | None = None, kind: TensorType | None = None, **options: Any
) -> Program:
    """A program whose logits are the accumulator of one convolution."""
    groups = options.get("groups", 1)
    kind = kind or TensorType(weight.shape[1] * groups, torch.int8, -128, 127)
    options = {"weight_bits": 8, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    out = weight.shape[0]
    return Program(
        {"x": kind, "acc": ACCUMULATOR(out), "ids": TensorType(1, torch.int32, 0, out - 1)},
        (Conv1d("conv", "x", "acc", weight, bias, **options), Argmax("argmax", "acc", "ids")),
        "x",
        "acc",
        "ids",
    )
