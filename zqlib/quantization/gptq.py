"""Second-order rounding of weights: what one weight loses, the others make up for.

A convolution is a product of its weights, one row per output channel, and patches x of its input.
Rounding the rows W to Q adds the squared error tr((W - Q) H (W - Q)^T) with H = E[x x^T]. GPTQ
(arXiv 2210.17323) rounds one column after another and moves the columns still to come to where they
make up best for the error so far; those beyond a block of columns are moved once for all of it.
"""

import torch
from torch import Tensor

from zqlib.quantization.weight_grid import nearest

__all__ = ["damped", "second_order_rounding"]

_DAMPING = 0.1  # of the mean of H's diagonal: what few data say of a rare direction is chance
_BLOCK = 64  # columns


def damped(moments: Tensor) -> Tensor:
    """Second moments with more on their diagonal, so that they have an inverse.

    Args:
        moments: (groups, inputs, inputs) float64: H, times any number above 0.

    Returns:
        Shaped alike; the mean of the diagonal has become 1, but for the addition and where all
        inputs are 0.
    """
    mean = moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    unit = torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device)
    return moments / mean.masked_fill(mean == 0, 1.0) + _DAMPING * unit


def second_order_rounding(weight: Tensor, moments: Tensor, step: Tensor, bits: int) -> Tensor:
    """Round weights for the least squared error of their products.

    Args:
        weight: (groups, rows, inputs) float64.
        moments: (groups, inputs, inputs) float64: H, times any number above 0.
        step: float64, broadcast to the weights: of each one's grid.
        bits: of a weight.

    Returns:
        Multiples of the steps, shaped as the weights.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moments)))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rest, rounded = weight.clone(), torch.empty_like(weight)
    step = step.expand_as(weight)
    for start in range(0, weight.shape[2], _BLOCK):
        end = min(start + _BLOCK, weight.shape[2])
        errors = torch.empty_like(rest[:, :, start:end])
        for column in range(start, end):
            one = slice(column, column + 1)
            value = rest[:, :, one]
            rounded[:, :, one] = nearest(value, step[:, :, one], bits)
            error = (value - rounded[:, :, one]) / upper[:, None, column, column, None]
            rest[:, :, column:end] -= error * upper[:, None, column, column:end]
            errors[:, :, column - start : column - start + 1] = error
        rest[:, :, end:] -= errors @ upper[:, start:end, end:]
    return rounded
