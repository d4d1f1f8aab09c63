"""A network as a graph without BatchNorm: QuartzNet and Jasper here, the others by family."""

from torch import nn

from zqlib.models import Network
from zqlib.models.jasper import JasperBlock, JasperCTC, MaskedConv, ResidualBranch
from zqlib.models.layers import BatchNorm
from zqlib.quantization.batch_norm import fold_batch_norm
from zqlib.quantization.fold_conformer import fold_conformer
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import Activation, FloatConv
from zqlib.quantization.scheme import QuantScheme

__all__ = ["fold"]


def fold(network: Network, scheme: QuantScheme) -> FloatGraph:
    """Express a network as a graph without BatchNorm.

    Folding is done in float64 and stored as float32.

    Args:
        network: a QuartzNet, Jasper or Conformer.
        scheme: decides which sums are rounded, and which of them need more bits than others.
    """
    if isinstance(network, JasperCTC):
        return _fold_jasper(network, scheme)
    return fold_conformer(network, scheme)


def _fold_jasper(network: JasperCTC, scheme: QuantScheme) -> FloatGraph:
    operators: list[FloatConv | Activation] = []
    panes = ["features"]
    for index, block in enumerate(network.encoder.encoder):
        assert isinstance(block, JasperBlock)
        output = _fold_block(operators, f"block{index}", block, panes, scheme)
        panes = [*panes, output] if block.dense_residual else [output]
    decoder = network.decoder.decoder_layers[0]
    assert isinstance(decoder, nn.Conv1d)
    weight, bias, source = decoder.weight.detach(), decoder.bias, panes[-1]
    if scheme.signed_sums:
        operators.append(Activation("decoder.input", (source,), relu=False))
        source = operators[-1].output
    operators.append(FloatConv("decoder", source, "logits", weight, bias))
    return FloatGraph(tuple(operators), "features", network.config.n_mels, "logits")


def _fold_block(
    operators: list[FloatConv | Activation],
    name: str,
    block: JasperBlock,
    panes: list[str],
    scheme: QuantScheme,
) -> str:
    """Append a block's operators; the name of its output."""
    current = panes[-1]
    layers = list(block.mconv)
    last_norm = max(i for i, layer in enumerate(layers) if isinstance(layer, BatchNorm))
    convs = 0
    for index, layer in enumerate(layers):
        if not isinstance(layer, MaskedConv):
            continue
        conv_name = f"{name}.conv{convs}"
        convs += 1
        norm = layers[index + 1]
        if isinstance(norm, BatchNorm):
            operators.append(_fold_conv(conv_name, current, layer.conv, norm))
            current = f"{conv_name}.acc"
            if index + 1 != last_norm:  # the block's last ReLU comes after the residual sum
                operators.append(Activation(f"{conv_name}.relu", (current,), relu=True))
                current = operators[-1].output
        else:  # depthwise, before its pointwise: quantized, but not clipped at zero
            operators.append(_fold_conv(conv_name, current, layer.conv, None))
            operators.append(Activation(f"{conv_name}.out", (operators[-1].output,), relu=False))
            current = operators[-1].output
    branches = [current]
    for index, (pane, branch) in enumerate(zip(panes, block.res, strict=False)):
        assert isinstance(branch, ResidualBranch)
        conv, norm = branch[0], branch[1]
        assert isinstance(conv, MaskedConv) and isinstance(norm, BatchNorm)
        operators.append(_fold_conv(f"{name}.residual{index}", pane, conv.conv, norm))
        branches.append(operators[-1].output)
    group = name if scheme.residual_sum == "shared" and len(branches) > 2 else None
    if scheme.residual_sum != "whole":
        while len(branches) > 2:
            partial = f"{name}.sum{len(panes) + 1 - len(branches)}"
            operators.append(Activation(partial, tuple(branches[:2]), relu=False, group=group))
            branches = [partial, *branches[2:]]
    if scheme.signed_sums and len(branches) > 1:
        group = group or name
        operators.append(Activation(f"{name}.sum", tuple(branches), relu=False, group=group))
        branches = [operators[-1].output]
    operators.append(Activation(f"{name}.relu", tuple(branches), relu=True, group=group))
    return operators[-1].output


def _fold_conv(name: str, source: str, conv: nn.Conv1d, norm: BatchNorm | None) -> FloatConv:
    weight, bias = (conv.weight.detach(), None) if norm is None else fold_batch_norm(conv, norm)
    return FloatConv(
        name, source, f"{name}.acc", weight, bias,
        conv.stride[0], int(conv.padding[0]), conv.dilation[0], conv.groups,
    )  # fmt: skip
