"""The operators of `zqlib.integer.operators` as JSON and tensors, and back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zqlib.integer.nonlinear import LayerNormConstants
from zqlib.integer.operators import Attention, Conv2d, LayerNorm, Positions, Product, Sigmoid, Swish
from zqlib.integer.packing import pack_weight, unpack_weight

__all__ = ["describe", "rebuild"]

Described = Conv2d | LayerNorm | Sigmoid | Swish | Product | Positions | Attention

_SCORES = ("content", "distance", "exponent")


def describe(operator: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an operator, and what else there is to say of it."""
    match operator:
        case Conv2d():
            fields = ("name", "input", "output", "weight_bits", "group_size", "stride", "padding",
                      "bands")  # fmt: skip
            packed = pack_weight(operator.weight, operator.weight_bits, operator.group_size)
            return {**packed, "bias": operator.bias}, {
                "op": "conv2d",
                "shape": list(operator.weight.shape),
                **{field: getattr(operator, field) for field in fields},
            }
        case LayerNorm():
            constants = operator.constants
            tensors = {"m": constants.m, "e": constants.e, "offset": constants.offset}
            return tensors, {"op": "layer_norm", "eps": constants.eps, **_ends(operator)}
        case Sigmoid():
            entry = {"op": "sigmoid", "high": operator.high, **_ends(operator)}
            return _dyadic("exponent", operator.exponent), entry
        case Swish():
            tensors = _dyadic("exponent", operator.exponent) | _dyadic("gain", operator.gain)
            return tensors, {"op": "swish", "zero": operator.zero, **_ends(operator)}
        case Positions():
            return {"table": operator.table}, {"op": "positions", **_ends(operator)}
        case Product():
            return {}, {"op": "product", **_ends(operator)}
        case Attention():
            tensors = {
                "content_bias": operator.content_bias,
                "distance_bias": operator.distance_bias,
            }
            for key in _SCORES:
                tensors |= _dyadic(key, getattr(operator, key))
            return tensors, {"op": "attention", "heads": operator.heads, **_ends(operator)}
    raise TypeError(f"{type(operator).__name__} is no operator of integer programs")


def _dyadic(key: str, number: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{key}.m": number[0], f"{key}.e": number[1]}


def _ends(
    operator: LayerNorm | Sigmoid | Swish | Positions | Product | Attention,
) -> dict[str, Any]:
    return {"name": operator.name, "reads": list(operator.reads), "output": operator.output}


def rebuild(kind: str, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> Described:
    """The inverse of `describe`, without its checks: those of `Program` follow.

    Args:
        kind: the entry's `op`, taken out of it.
        entry: the rest of the description.
        tensors: of this operator.

    Raises:
        KeyError, TypeError, ValueError: the description is not one.
        InputError: packed weights have the wrong size.
    """
    if kind == "conv2d":
        weight = unpack_weight(entry, tensors, axes=4)
        return Conv2d(weight=weight, bias=tensors["bias"], **entry)

    def number(key: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{key}.m"], tensors[f"{key}.e"]

    name, reads, output = entry.pop("name"), entry.pop("reads"), entry.pop("output")
    match kind:
        case "layer_norm":
            (source,) = reads
            vectors = (tensors["m"], tensors["e"], tensors["offset"])
            return LayerNorm(name, source, output, LayerNormConstants(*vectors, entry["eps"]))
        case "sigmoid":
            (source,) = reads
            return Sigmoid(name, source, output, number("exponent"), entry["high"])
        case "swish":
            (source,) = reads
            return Swish(name, source, output, number("exponent"), number("gain"), entry["zero"])
        case "positions":
            (source,) = reads
            return Positions(name, source, output, tensors["table"])
        case "product":
            first, second = reads
            return Product(name, (first, second), output)
        case "attention":
            query, key, value, positions = reads
            return Attention(
                name,
                (query, key, value, positions),
                output,
                entry["heads"],
                tensors["content_bias"],
                tensors["distance_bias"],
                *map(number, _SCORES),
            )
    raise ValueError(f"unknown operator {kind!r}")
