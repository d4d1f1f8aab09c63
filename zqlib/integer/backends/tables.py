"""Functions of one element as tables: the reference's value for everything that can come in."""

from collections.abc import Mapping

import torch
from torch import Tensor

from zqlib.integer.nonlinear import sigmoid, swish
from zqlib.integer.operators import Sigmoid, Swish
from zqlib.integer.tensor_type import TensorType

__all__ = ["function_table"]


def function_table(operator: Sigmoid | Swish, tensors: Mapping[str, TensorType]) -> Tensor:
    """(high - low + 1,) of the output's type, for the inputs low ... high."""
    source, target = tensors[operator.input], tensors[operator.output]
    x = torch.arange(source.low, source.high + 1)
    if isinstance(operator, Sigmoid):
        y = sigmoid(x, *operator.exponent, operator.high)
    else:
        y = swish(x, operator.exponent, operator.gain) + operator.zero
    return y.clamp(target.low, target.high).to(target.dtype)
