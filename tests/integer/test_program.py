"""Every rule of `Program` is broken once; the overflow proof is tight."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from zqlib.errors import LoweringError
from zqlib.integer.arithmetic import dyadic
from zqlib.integer.program import (
    ACCUMULATOR,
    Argmax,
    Conv1d,
    Program,
    Requantize,
    TensorType,
    Term,
    accumulator_bound,
)


def multiplier(channels: int, value: float = 0.01) -> tuple[Tensor, Tensor]:
    return dyadic(torch.full((channels,), value, dtype=torch.float64))


def program() -> Program:
    """x (4) -> dense conv -> sum with a pointwise conv of x -> depthwise -> logits -> tokens."""
    weight = torch.ones(6, 4, 3, dtype=torch.int8)
    bias = torch.zeros(6, dtype=torch.int32)
    conv = Conv1d("conv", "x", "a", weight, bias, 8, 2, 1, 1, 1)
    branch = Conv1d("branch", "x", "b", weight[:, :, :1].clone(), None, 8, 2, 0, 1, 1)
    terms = (Term("a", *multiplier(6)), Term("b", *multiplier(6)))
    depthwise_weight = torch.ones(6, 1, 5, dtype=torch.int8)
    return Program(
        tensors={
            "x": TensorType(4, torch.int8, -128, 127),
            "a": ACCUMULATOR(6),
            "b": ACCUMULATOR(6),
            "y": TensorType(6, torch.uint8, 0, 255),
            "c": ACCUMULATOR(6),
            "logits": ACCUMULATOR(6),
            "tokens": TensorType(1, torch.int32, 0, 5),
        },
        operators=(
            conv,
            branch,
            Requantize("sum", terms, "y"),
            Conv1d("depthwise", "y", "c", depthwise_weight, None, 8, 1, 4, 2, 6),
            Requantize("common", (Term("c", *multiplier(6)),), "logits"),
            Argmax("argmax", "logits", "tokens"),
        ),
        input="x",
        logits="logits",
        tokens="tokens",
    )


def changed(operator: str, **fields: Any) -> Program:
    """The program with fields of one operator replaced."""
    valid = program()
    return replace(
        valid,
        operators=tuple(replace(o, **fields) if o.name == operator else o for o in valid.operators),
    )


def retyped(**types: TensorType) -> Program:
    valid = program()
    return replace(valid, tensors={**valid.tensors, **types})


def term(**fields: Any) -> tuple[Term, Term]:
    first, second = program().operators[2].terms
    return first, replace(second, **fields)


def filled(value: int, channels: int = 6, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.full((channels,), value, dtype=dtype)


def test_valid_program_is_accepted() -> None:
    assert len(program().operators) == 6


TYPE_BREACHES = {
    "floating container": (4, torch.float32, 0, 1),
    "int64 container": (4, torch.int64, 0, 1),
    "beyond int8": (4, torch.int8, -129, 127),
    "negative uint8": (4, torch.uint8, -1, 255),
    "beyond uint8": (4, torch.uint8, 0, 256),
    "beyond int32": (4, torch.int32, 0, 2**31),
    "zero is outside": (4, torch.int8, 1, 127),
    "zero is above": (4, torch.int8, -128, -1),
    "no channel": (0, torch.int8, -128, 127),
    "fractional bound": (4, torch.int8, -0.5, 127),
    "fractional channels": (4.0, torch.int8, -128, 127),
}


@pytest.mark.parametrize("breach", TYPE_BREACHES)
def test_type_that_does_not_fit_its_container_is_refused(breach: str) -> None:
    with pytest.raises(LoweringError):
        TensorType(*TYPE_BREACHES[breach])


ONES = torch.ones(6, 4, 3, dtype=torch.int8)
BREACHES = {
    "reads the future": (lambda: changed("conv", input="y"), "conv reads 'y' before"),
    "reads nothing known": (lambda: changed("argmax", input="z"), "argmax reads 'z' before"),
    "writes twice": (lambda: changed("branch", output="a"), "branch writes 'a' a second time"),
    "overwrites its input": (lambda: changed("conv", output="x"), "writes 'x' a second"),
    "same name twice": (lambda: changed("branch", name="conv"), "Two operators are named conv"),
    "no type": (lambda: changed("argmax", output="untyped"), "argmax uses a tensor that has no"),
    "no logits": (lambda: replace(program(), logits="z"), "never writes"),
    "no tokens": (lambda: replace(program(), tokens="z"), "never writes"),
    "input as logits": (lambda: replace(program(), logits="x"), "never writes"),
    "no operators": (lambda: replace(program(), operators=()), "never writes"),
    "narrow logits": (lambda: replace(program(), logits="y"), "logits and tokens are int32"),
    "wide tokens": (lambda: replace(program(), tokens="logits"), "tokens have one channel"),
    "wide argmax": (lambda: retyped(tokens=ACCUMULATOR(6)), "argmax writes int32 indices"),
    "narrow argmax": (
        lambda: retyped(tokens=TensorType(1, torch.int8, 0, 5)),
        "argmax writes int32 indices",
    ),
    "argmax of fewer classes": (
        lambda: retyped(tokens=TensorType(1, torch.int32, 0, 4)),
        "argmax writes int32 indices",
    ),
    "weights of two axes": (lambda: changed("conv", weight=ONES[:, :, 0]), "weights are .out"),
    "float weights": (lambda: changed("conv", weight=ONES.float()), "weights are int8"),
    "int32 weights": (lambda: changed("conv", weight=ONES.int()), "weights are int8"),
    "weight -128": (lambda: changed("conv", weight=ONES * -128), r"within \[-127, 127\]"),
    "5-bit weight 16": (lambda: changed("conv", weight=ONES * 16, weight_bits=5), "within .-15"),
    "5-bit weight -16": (lambda: changed("conv", weight=ONES * -16, weight_bits=5), "within .-15"),
    "1-bit weights": (lambda: changed("conv", weight_bits=1), "2 to 8 bits"),
    "9-bit weights": (lambda: changed("conv", weight_bits=9), "2 to 8 bits"),
    "8.0-bit weights": (lambda: changed("conv", weight_bits=8.0), "2 to 8 bits"),
    "no product": (
        lambda: changed("conv", weight=ONES * 17, weight_bits=4, group_size=2),
        "multiples of their sub-scales",
    ),
    "group of 8 bits": (lambda: changed("conv", group_size=2), "fewer than 8 bits"),
    "group of none": (lambda: changed("conv", weight_bits=4, group_size=0), "1 to 4096 weights"),
    "float bias": (lambda: changed("conv", bias=torch.zeros(6)), "bias is int32"),
    "long bias": (lambda: changed("conv", bias=torch.zeros(6).long()), "bias is int32"),
    "short bias": (lambda: changed("conv", bias=torch.zeros(5).int()), "bias is int32"),
    "wrong channels": (lambda: changed("conv", weight=ONES[:, :3]), "dense or depthwise"),
    "grouped": (lambda: changed("conv", weight=ONES[:, :2], groups=2), "dense or depthwise"),
    "multiplier of channels": (
        lambda: changed("depthwise", weight=torch.ones(12, 1, 5, dtype=torch.int8)),
        "dense or depthwise",
    ),
    "reads int32": (
        lambda: retyped(y=TensorType(6, torch.int32, 0, 255)),
        "depthwise .* reads int8 or uint8",
    ),
    "writes int8": (
        lambda: retyped(a=TensorType(6, torch.int8, -128, 127)),
        "conv .* writes an accumulator",
    ),
    "writes other channels": (lambda: retyped(a=ACCUMULATOR(5)), "conv .* writes an accumulator"),
    "stride 0": (lambda: changed("conv", stride=0), "stride, dilation and padding"),
    "stride 1.5": (lambda: changed("conv", stride=1.5), "stride, dilation and padding"),
    "dilation 0": (lambda: changed("conv", dilation=0), "stride, dilation and padding"),
    "padding -1": (lambda: changed("conv", padding=-1), "stride, dilation and padding"),
    "enormous padding": (lambda: changed("conv", padding=10**9), "stride, dilation and padding"),
    "no terms": (lambda: changed("sum", terms=()), "1 to 256 terms"),
    "257 terms": (lambda: changed("sum", terms=term() * 129), "1 to 256 terms"),
    "term of other channels": (lambda: changed("sum", terms=term(input="x")), "same channels"),
    "m of other channels": (
        lambda: changed("sum", terms=term(m=filled(2**30, 5, torch.int32))),
        "m is int32",
    ),
    "e of other channels": (lambda: changed("sum", terms=term(e=filled(20, 5))), "m is int32"),
    "long m": (lambda: changed("sum", terms=term(m=filled(2**30, 6, torch.int64))), "m is int32"),
    "float m": (lambda: changed("sum", terms=term(m=torch.ones(6))), "m is int32"),
    "int e": (lambda: changed("sum", terms=term(e=filled(20).int())), "e is int8"),
    "small m": (
        lambda: changed("sum", terms=term(m=filled(2**30 - 1, 6, torch.int32))),
        "at least 2.30",
    ),
    "negative m": (
        lambda: changed("sum", terms=term(m=filled(-(2**30), 6, torch.int32))),
        "at least 2.30",
    ),
    "e 0": (lambda: changed("sum", terms=term(e=filled(0))), "e is within"),
    "e 63": (lambda: changed("sum", terms=term(e=filled(63))), "e is within"),
    "large multiplier in a sum": (lambda: changed("sum", terms=term(e=filled(7))), "below 2.23"),
    "strides of a sum differ": (lambda: changed("branch", stride=1), "terms have the same frames"),
    "padding of a sum differs": (lambda: changed("branch", padding=1), "have the same frames"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_broken_rule_is_refused(breach: str) -> None:
    build, message = BREACHES[breach]
    with pytest.raises(LoweringError, match=message):
        build()


def test_equal_frames_by_another_way_are_accepted() -> None:
    """Stride 2 with 3 taps and padding 1, or stride 2 with 1 tap: ceil(n / 2) both."""
    changed("branch", weight=torch.ones(6, 4, 5, dtype=torch.int8), padding=2)
    changed("branch", weight=torch.ones(6, 4, 5, dtype=torch.int8), padding=4, dilation=2)


def at_bound(bias: int, low: int = -128) -> Program:
    """One channel with 127 * 128 * 64 from its weights, and a bias."""
    weight = torch.full((2, 64, 1), -127, dtype=torch.int8)
    weight[0] = 0
    conv = Conv1d(
        "wide", "x", "acc", weight, torch.tensor([0, bias], dtype=torch.int32), 8, 1, 0, 1, 1
    )
    types = {
        "x": TensorType(64, torch.int8, low, 127),
        "acc": ACCUMULATOR(2),
        "ids": TensorType(1, torch.int32, 0, 1),
    }
    return Program(types, (conv, Argmax("ids", "acc", "ids")), "x", "acc", "ids")


@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_proof_is_tight_and_names_the_layer(sign: int) -> None:
    from_weights = 64 * 127 * 128
    largest = 2**31 - 1 - from_weights
    accepted = at_bound(sign * largest)
    bound = accumulator_bound(accepted.operators[0], accepted.tensors["x"])
    assert bound.tolist() == [0, 2**31 - 1]
    with pytest.raises(LoweringError, match="layer wide could reach 2147483648"):
        at_bound(sign * (largest + 1))


def test_overflow_proof_counts_the_range_that_the_input_can_have() -> None:
    from_weights = 64 * 127 * 127
    at_bound(2**31 - 1 - from_weights, low=-127)
    with pytest.raises(LoweringError, match="wide"):
        at_bound(2**31 - 1 - from_weights, low=-128)


def test_bound_of_int32_minimum_as_bias_does_not_wrap() -> None:
    with pytest.raises(LoweringError, match="wide"):
        at_bound(-(2**31))
