"""The proof by execution that a program is integer-only: a mode in which no float can exist."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zqlib.errors import ZqError

__all__ = ["FloatInIntegerProgram", "IntegerOnly"]


class FloatInIntegerProgram(ZqError):
    """A torch operation read or produced a floating-point or complex value under the guard."""


class IntegerOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises as soon as a torch operation touches anything that is not made of integers.

    Python numbers count: `x.fill_(0.5)` has integer tensors only, and computes in float.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Check the operands, run the operation, check the result."""
        _check(func, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        _check(func, result)
        return result


def _check(func: Any, value: Any) -> None:
    for leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            is_float, kind = leaf.is_floating_point() or leaf.is_complex(), f"{leaf.dtype} tensor"
        else:
            is_float, kind = isinstance(leaf, float | complex), f"Python {type(leaf).__name__}"
        if is_float:
            raise FloatInIntegerProgram(f"{func} touched a {kind} inside an integer program.")


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
