"""Matrix products of 8-bit integers, as fast as torch has them on this processor."""

from functools import cache

import torch
from torch import Tensor

__all__ = ["int_mm_is_fast", "product"]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(rows, in) x (in, out) to (rows, out) int32, exactly."""
    if int_mm_is_fast():
        return torch._int_mm(_row_major(x), _row_major(weight))
    return x.to(torch.int32) @ weight.to(torch.int32)


def _row_major(x: Tensor) -> Tensor:
    """A matrix with the strides of its shape, also along an axis of size 1.

    torch leaves any stride there and calls the matrix contiguous, but `torch._int_mm` takes a
    stride of 1 for the sign of a transposed matrix and reads beside it.
    """
    return x.contiguous().as_strided(x.shape, (x.shape[1], 1))


@cache
def int_mm_is_fast() -> bool:
    """Whether `torch._int_mm` multiplies bytes by instructions made for that, and exactly.

    Without VNNI it is a loop, ten times as slow as a product of int32 (torch 2.13); torch before
    2.12 refuses bytes without a sign.
    """
    if not torch.cpu._is_vnni_supported():
        return False
    for value, dtype in ((255, torch.uint8), (-128, torch.int8)):
        x = torch.full((32, 64), value, dtype=dtype)
        weight = torch.full((64, 32), -127, dtype=torch.int8)
        try:
            products = torch._int_mm(x, weight)
        except RuntimeError:
            return False
        if not bool((products == value * -127 * 64).all()):
            return False
    return True
