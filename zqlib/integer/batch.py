"""What every backend asks of a batch before it computes."""

from typing import Any

import torch
from torch import Tensor

from zqlib.errors import InputError
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.tensor_type import TensorType

__all__ = ["check_input", "output_lengths"]


def check_input(expected: TensorType, features: Tensor, lengths: Tensor) -> None:
    """Refuse features or lengths that do not fit a program's input.

    Raises:
        InputError: they do not.
    """
    if features.ndim != 3 or features.shape[1] != expected.channels or 0 in features.shape:
        raise InputError(
            f"The program reads (batch, {expected.channels}, frames); "
            f"these features have shape {tuple(features.shape)}."
        )
    if features.dtype != expected.dtype:
        raise InputError(
            f"The program reads {expected.dtype}, these features are {features.dtype}."
        )
    if lengths.shape != features.shape[:1] or lengths.dtype != torch.int64:
        raise InputError("The lengths must be int64, one per utterance.")
    if int(lengths.min()) < 1 or int(lengths.max()) > features.shape[2]:
        raise InputError("Every length must be between 1 and the number of frames.")
    # numpy works on one thread: see the executor of the backend cpu
    values = features if features.is_cuda else features.numpy()
    if values.min() < expected.low or values.max() > expected.high:
        raise InputError(f"The features leave the range [{expected.low}, {expected.high}].")


def output_lengths(conv: Conv1d | Conv2d, lengths: Any) -> Any:
    """Valid frames after a convolution, (batch,) int64, for a torch tensor or a numpy array.

    Raises:
        InputError: an utterance is too short for the convolution.
    """
    result = conv.output_lengths(lengths)
    if int(result.min()) < 1:
        raise InputError(f"An utterance is too short for layer {conv.name}; leave it out.")
    return result
