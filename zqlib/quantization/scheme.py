"""Quantization schemes: frozen, named, and the same after a trip through JSON."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from zqlib.errors import InputError

__all__ = ["QuantScheme", "RangeMethod", "ResidualSum", "preset", "usual_name", "usual_scheme"]

RangeMethod = Literal["minmax", "percentile", "mse", "moving-average"]
ResidualSum = Literal["whole", "partial", "shared"]
WeightRangeMethod = Literal["minmax", "mse"]
WeightRounding = Literal["nearest", "gptq", "adaround"]
BudgetOf = Literal["size", "operations"]

_LARGEST_GROUP = 4096
_LEAST_ACTIVATION_BITS, _GROUP = 6, 16  # of what is usual


@dataclass(frozen=True)
class QuantScheme:
    """How weights and activations become integers.

    Attributes:
        weight_bits: 2 to 8; symmetric per output channel, ends [-(2^(b-1)-1), 2^(b-1)-1].
        both_ends: of these are used; else the upper one is cut off (as the authors' code does), so
            that the largest positive weight of a channel loses one step.
        activation_bits: 2 to 8; symmetric per tensor, static.
        unsigned_relu: activations after a ReLU are unsigned (TensorRT needs them signed).
        offset_swish: outputs of a Swish, which are never below -0.28, are unsigned from there on;
            else symmetric, which wastes almost half of the levels (TensorRT needs them so).
        equalize: move factors between layers first (`zqlib.quantization.equalize`); the paper
            does not.
        recentre: take the means off a Conformer's channels first (`zqlib.quantization.recentre`);
            the paper does not.
        range_method: how an activation's clipping value follows from what calibration observed;
            `moving-average` depends on the order of the batches (the authors' code).
        percentile: of |x|, used by the method `percentile` (the authors' W6A6 example: 99.996).
        stream_bits: 8 to 24; of a Conformer's residual stream, which every LayerNorm reads.
        gate_bits: 8 to 16; of what goes into a Swish or a sigmoid.
        residual_sum: of Jasper's dense residuals: the `whole` sum in 32 bits, rounded once; or
            every `partial` sum rounded too, on a scale of its own or on one `shared` by all of a
            block (as the authors' code does).
        signed_sums: a residual sum has its range taken before the ReLU and keeps a sign bit that
            the ReLU leaves unused, and so does what the decoder reads (as in the authors' code).
        weight_range_method: whether a channel's last level is its largest |w| (`minmax`) or where
            rounding and clipping its weights have the least squared error (`mse`).
        weight_rounding: to the `nearest` level, or for the least squared error of the products with
            what calibration data the layer reads: to where earlier errors are made up for (`gptq`),
            or to the one of its two neighbouring levels that gradients find (`adaround`).
        bias_correction: add to each bias what rounding the weights takes off the mean output.
        block_reconstruction: then move the weights of every block on their grids together, for the
            least error of what the block hands on (`zqlib.quantization.reconstruction`).
        weight_group: how many weights of an output, of fewer than 8 bits, share an integer
            sub-scale: a weight times it is still an int8. None for no sub-scales.
        weight_budget: 2 to 8, bits of a weight on average, its share of a sub-scale among them:
            layers get what costs the logits least (`zqlib.quantization.mixed_precision`). None for
            `weight_bits` everywhere.
        budget_of: what the average is taken over: the weights of the file (`size`), or those of all
            multiplications (`operations`).
        layer_bits: 2 to 8 by name of a layer, the others have `weight_bits`. If it names any, the
            budget is not looked at: this is how what it led to is kept, and repeated.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    both_ends: bool = True
    unsigned_relu: bool = True
    offset_swish: bool = True
    equalize: bool = True
    recentre: bool = True
    range_method: RangeMethod = "minmax"
    percentile: float = 99.996
    stream_bits: int = 24
    gate_bits: int = 16
    residual_sum: ResidualSum = "whole"
    signed_sums: bool = False
    weight_range_method: WeightRangeMethod = "minmax"
    weight_rounding: WeightRounding = "nearest"
    bias_correction: bool = False
    block_reconstruction: bool = False
    weight_group: int | None = None
    weight_budget: float | None = None
    budget_of: BudgetOf = "size"
    layer_bits: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        widths = {"weight_bits": (2, 8), "activation_bits": (2, 8), "stream_bits": (8, 24),
                  "gate_bits": (8, 16)}  # fmt: skip
        for name, (least, most) in widths.items():
            bits = getattr(self, name)
            if type(bits) is not int or not least <= bits <= most:
                raise InputError(f"{name} is {bits!r}; give an integer from {least} to {most}.")
        choices = {"range_method": RangeMethod, "residual_sum": ResidualSum,
                   "weight_range_method": WeightRangeMethod,
                   "weight_rounding": WeightRounding, "budget_of": BudgetOf}  # fmt: skip
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(
                    f"The {name.replace('_', ' ')} {getattr(self, name)!r} is unknown; use {known}."
                )
        for name in ("both_ends", "unsigned_relu", "offset_swish", "equalize", "recentre",
                     "signed_sums", "bias_correction", "block_reconstruction"):  # fmt: skip
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name} is {getattr(self, name)!r}; give true or false.")
        group = self.weight_group
        if group is not None and (type(group) is not int or not 2 <= group <= _LARGEST_GROUP):
            raise InputError(
                f"weight_group is {group!r}; give an integer from 2 to {_LARGEST_GROUP}, or none."
            )
        methods = self.bias_correction or self.block_reconstruction
        beyond = self.weight_rounding != "nearest" or methods or group is not None
        if not self.both_ends and beyond:
            raise InputError(
                "both_ends can be false only where weights, without sub-scales, go to the nearest "
                "level."
            )
        budget = self.weight_budget
        if budget is not None and not (type(budget) in (int, float) and 2 <= budget <= 8):
            raise InputError(f"weight_budget is {budget!r}; give a number from 2 to 8, or none.")
        if not isinstance(self.layer_bits, Mapping):
            raise InputError(f"layer_bits is {self.layer_bits!r}; give bits by name of a layer.")
        for name, bits in self.layer_bits.items():
            if type(bits) is not int or not 2 <= bits <= 8:
                raise InputError(f"{name} has {bits!r} bits; give an integer from 2 to 8.")
        if not isinstance(self.percentile, int | float) or not 50 < self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile!r}; give a number in (50, 100].")

    @property
    def name(self) -> str:
        """The short name, such as `w8a8`, `w4g16a8` with sub-scales, or `w4.5a8` on average."""
        bits = self.weight_bits if self.weight_budget is None else float(self.weight_budget)
        group = "" if self.weight_group is None else f"g{self.weight_group}"
        return f"w{bits}{group}a{self.activation_bits}"

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
    """A scheme by its short name.

    `w8a8`, `w6a6`, `w4a8`, ... from 2 to 8 bits; `w4g16a8` with sub-scales for groups of 16
    weights; `w4.5a8` or `w4.5g16a8` with layers of different bits, as many as that on average.

    Raises:
        InputError: the name does not have that form, or a number is out of range.
    """
    match = re.fullmatch(r"w(\d+)(\.\d+)?(?:g(\d+))?a(\d+)", name)
    if not match:
        raise InputError(
            f"{name!r} is not a quantization scheme; write w<bits>a<bits>, such as w8a8, w4.5a8 "
            "(on average) or w4g16a8 (with a sub-scale for every 16 weights)."
        )
    whole, part, group, activation_bits = match.groups()
    given: dict[str, Any] = {"activation_bits": int(activation_bits)}
    given |= {"weight_bits": int(whole)} if part is None else {"weight_budget": float(whole + part)}
    if group is not None:
        given["weight_group"] = int(group)
    return QuantScheme(**(given | overrides))


def usual_name(bits: int) -> str:
    """The short name of the scheme to take when only a number of bits is asked for.

    Down to 6 bits, the paper's smallest, for weights and activations alike. With fewer, activations
    lose most of what is heard, and sub-scales of weights cost little for what they save (the book's
    page *Fewer bits without data*): `w4g16a8`.
    """
    return f"w{bits}a{bits}" if bits >= _LEAST_ACTIVATION_BITS else f"w{bits}g{_GROUP}a8"


def usual_scheme(name: str, family: str, **overrides: Any) -> QuantScheme:
    """A scheme by its short name, with the methods that a family takes unless told otherwise.

    Chosen by how well logits follow the float model's on synthetic features that nothing was
    calibrated on, which no label and no recording enters (`zqlib.experiments.methods`).

    Ranges of activations: for fewer than 8 bits, and for a Jasper, with the least squared error;
    but a Conformer's leave the largest 0.004 % out. With 8 bits the extremes, which lose least of a
    Conformer once it is equalized (2 to 3 dB).
    Weights: corrected biases, and rounding that is learned for fewer than 6 bits, layer by layer
    and then, unless the rounding is chosen, block by block; and of second order from there on,
    where it is nearly as good and faster; for a Conformer steps of the least
    squared error below 8 bits, which QuartzNet's depthwise weights do not bear. A Jasper of 8 bits
    has its weights at the nearest level: second moments of all taps of its dense convolutions
    would take half an hour, and it loses little.

    Raises:
        InputError: as for `preset`.
    """
    named = preset(name)
    usual: dict[str, Any] = {"range_method": "mse" if family == "jasper" else "minmax"}
    if named.activation_bits < 8:
        usual["range_method"] = "percentile" if family == "conformer" else "mse"
    bits = named.weight_budget or named.weight_bits
    if bits < 8 or family != "jasper":
        usual |= {"weight_rounding": "adaround" if bits < 6 else "gptq", "bias_correction": True}
    usual["block_reconstruction"] = bits < 6 and "weight_rounding" not in overrides
    if bits < 8 and family == "conformer":
        usual["weight_range_method"] = "mse"
    return preset(name, **(usual | overrides))
