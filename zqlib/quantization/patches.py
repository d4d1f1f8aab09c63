"""A convolution as a product of matrices: its weights, and patches of its input."""

from torch import Tensor
from torch.nn import functional

from zqlib.quantization.nodes import FloatConv, FloatConv2d

__all__ = ["patches", "weight_rows"]


def weight_rows(conv: FloatConv | FloatConv2d) -> Tensor:
    """The weights as (groups, output channels of a group, inputs of an output) float64."""
    groups = conv.groups if isinstance(conv, FloatConv) else 1
    return conv.weight.double().reshape(groups, conv.weight.shape[0] // groups, -1)


def patches(conv: FloatConv | FloatConv2d, x: Tensor) -> Tensor:
    """What every row of weights is multiplied with.

    Args:
        conv: the convolution.
        x: (channels, frames) float32: what it reads of one utterance, without padding.

    Returns:
        (groups, inputs of an output, frames times bands of the output) float32; a view where the
        convolution is depthwise or has one tap.
    """
    if isinstance(conv, FloatConv2d):
        planes = x.reshape(conv.weight.shape[1], -1, x.shape[1]).transpose(1, 2)
        size = conv.weight.shape[2:]  # over frames and bands
        return functional.unfold(planes[None], size, padding=conv.padding, stride=conv.stride)
    span = conv.dilation * (conv.weight.shape[2] - 1) + 1
    windows = functional.pad(x, (conv.padding, conv.padding)).unfold(1, span, conv.stride)
    columns = windows[:, :, :: conv.dilation].transpose(1, 2)  # (channels, taps, frames)
    return columns.reshape(conv.groups, -1, columns.shape[2])
