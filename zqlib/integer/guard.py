"""The proof by execution that a program is integer-only: a mode in which no float can exist."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zqlib.errors import ZqError

__all__ = ["FloatInIntegerProgram", "IntegerOnly"]


class FloatInIntegerProgram(ZqError):
    """A torch operation read or produced a floating-point or complex tensor under the guard."""


class IntegerOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises as soon as a torch operation touches a tensor that is not made of integers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Check the operands, run the operation, check the result."""
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs or {}, result)):
            if tensor.is_floating_point() or tensor.is_complex():
                raise FloatInIntegerProgram(
                    f"{func} touched a {tensor.dtype} tensor inside an integer program."
                )
        return result


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
