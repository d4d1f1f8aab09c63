"""Learned rounding of weights: gradients decide whether each goes to the level below or above.

AdaRound (arXiv 2004.10568) puts every weight between its two neighbouring levels, at a height h
from 0 to 1 that Adam moves for the least squared error of the layer's products, and draws the
heights to their ends as it goes. Here that error is tr((W - Q) H (W - Q)^T), as for GPTQ, so that a
step sees all the data for the price of one product; and what draws is a growing share of h (1 - h)
times the curvature of each weight's own error. That is 0 where the heights are to end, and once the
share is 1, no single height is better off in between.
"""

import torch
from torch import Tensor

from zqlib.quantization.gptq import damped

__all__ = ["learned_rounding"]

_STEPS = 200
_LEARNING_RATE = 0.02


def learned_rounding(weight: Tensor, moments: Tensor, step: Tensor, bits: int) -> Tensor:
    """Round each weight to one of its two neighbouring levels, for the least error of the products.

    Args:
        weight: (groups, rows, inputs) float64.
        moments: (groups, inputs, inputs) float64: H, times any number above 0.
        step: float64, broadcast to the weights: of each one's grid.
        bits: of a weight.

    Returns:
        Multiples of the steps, shaped as the weights.
    """
    limit = 2 ** (bits - 1) - 1
    step = step.masked_fill(step == 0, 1.0).expand_as(weight)
    low = (weight / step).floor().clamp(-limit, limit - 1)
    offset = (low - weight / step).float()
    share = (step / step.mean(2, keepdim=True)).float()  # coarser steps of a row err by more
    second = damped(moments).float()
    curvature = second.diagonal(dim1=1, dim2=2)[:, None] * share.square()

    def error(height: Tensor) -> Tensor:
        return (offset + height) * share

    height = (-offset).clamp(0, 1)
    nearest = height.round()
    optimizer = torch.optim.Adam([height], lr=_LEARNING_RATE)
    for index in range(_STEPS):
        pull = (index + 1) / _STEPS * curvature * (0.5 - height)
        height.grad = (error(height) @ second) * share + pull
        optimizer.step()
        height.clamp_(0, 1)
    learned = height.round()
    losses = [((error(h) @ second) * error(h)).sum(2, keepdim=True) for h in (learned, nearest)]
    return (low + torch.where(losses[0] < losses[1], learned, nearest)) * step
