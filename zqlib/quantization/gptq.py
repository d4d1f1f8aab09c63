"""Second-order rounding of weights: what one weight loses, the others make up for.

A convolution is a product of its weights, one row per output channel, and patches x of its input.
Rounding the rows W to Q adds the squared error tr((W - Q) H (W - Q)^T) with H = E[x x^T]. GPTQ
(arXiv 2210.17323) rounds one column after another and moves the columns still to come to where they
make up best for the error so far.
"""

import torch
from torch import Tensor

from zqlib.quantization.weight_grid import nearest

__all__ = ["second_order_rounding"]

_DAMPING = 0.1  # of the mean of H's diagonal: what few data say of a rare direction is chance


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
    mean = moments.diagonal(dim1=1, dim2=2).mean(1)
    damping = torch.where(mean > 0, _DAMPING * mean, 1.0)  # 1 where all inputs are 0
    damped = moments + damping[:, None, None] * torch.eye(moments.shape[1], dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rest, rounded = weight.clone(), torch.empty_like(weight)
    step = step.expand_as(weight)
    for column in range(weight.shape[2]):
        one = slice(column, column + 1)
        value = rest[:, :, one]
        rounded[:, :, one] = nearest(value, step[:, :, one], bits)
        error = (value - rounded[:, :, one]) / upper[:, None, column, column, None]
        rest[:, :, column:] -= error * upper[:, None, column, column:]
    return rounded
