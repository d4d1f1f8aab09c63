"""Quantization schemes: frozen, named, and the same after a trip through JSON."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from zqlib.errors import InputError

__all__ = ["QuantScheme", "RangeMethod", "preset"]

RangeMethod = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class QuantScheme:
    """How weights and activations become integers.

    Attributes:
        weight_bits: 2 to 8; symmetric per output channel, ends [-(2^(b-1)-1), 2^(b-1)-1].
        activation_bits: 2 to 8; symmetric per tensor, static.
        unsigned_relu: activations after a ReLU are unsigned (TensorRT needs them signed).
        range_method: how an activation's clipping value follows from what calibration observed.
        percentile: of |x|, used by the method `percentile` (the authors' W6A6 example: 99.996).
    """

    weight_bits: int = 8
    activation_bits: int = 8
    unsigned_relu: bool = True
    range_method: RangeMethod = "minmax"
    percentile: float = 99.996

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if type(bits) is not int or not 2 <= bits <= 8:
                raise InputError(f"{name} is {bits!r}; give an integer from 2 to 8.")
        if self.range_method not in get_args(RangeMethod):
            known = ", ".join(get_args(RangeMethod))
            raise InputError(f"The range method {self.range_method!r} is unknown; use {known}.")
        if type(self.unsigned_relu) is not bool:
            raise InputError(f"unsigned_relu is {self.unsigned_relu!r}; give true or false.")
        if not isinstance(self.percentile, int | float) or not 50 < self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile!r}; give a number in (50, 100].")

    @property
    def name(self) -> str:
        """The short name, such as `w8a8`."""
        return f"w{self.weight_bits}a{self.activation_bits}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_json` reads back to an equal scheme."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a mapping.

        Raises:
            InputError: a key is unknown or a value impossible.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise InputError(f"The quantization scheme has the unknown key {unknown[0]!r}.")
        return cls(**value)


def preset(name: str, **overrides: Any) -> QuantScheme:
    """A scheme by its short name: `w8a8`, `w6a6`, `w4a8`, ... from 2 to 8 bits.

    Raises:
        InputError: the name does not have that form, or the bits are out of range.
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", name)
    if not match:
        raise InputError(
            f"{name!r} is not a quantization scheme; write w<bits>a<bits>, such as w8a8."
        )
    weight_bits, activation_bits = map(int, match.groups())
    return QuantScheme(weight_bits=weight_bits, activation_bits=activation_bits, **overrides)
