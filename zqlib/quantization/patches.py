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
        (groups, inputs of an output, frames times bands of the output) float32.
    """
    if isinstance(conv, FloatConv2d):
        planes = x.reshape(conv.weight.shape[1], -1, x.shape[1]).transpose(1, 2)
        size = conv.weight.shape[2:]  # over frames and bands
        return functional.unfold(planes[None], size, padding=conv.padding, stride=conv.stride)
    columns = functional.unfold(
        x[None, :, :, None], (conv.weight.shape[2], 1),
        (conv.dilation, 1), (conv.padding, 0), (conv.stride, 1),
    )  # fmt: skip
    return columns.view(conv.groups, -1, columns.shape[2])
