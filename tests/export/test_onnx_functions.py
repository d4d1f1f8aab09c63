"""The ONNX functions in ONNX Runtime against the integer arithmetic that they repeat."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny import integers, reproducible
from torch import Tensor

from zqlib.export.onnx_builder import IR_VERSION
from zqlib.export.onnx_functions import DOMAIN, OPSET, integer_functions
from zqlib.export.runtime import open_session
from zqlib.integer.arithmetic import requantize
from zqlib.integer.nonlinear import (
    LayerNormConstants,
    exp2,
    exponent_multiplier,
    integer_sqrt,
    layer_norm,
    sigmoid,
    softmax_weights,
    swish,
)

SESSIONS: dict[tuple[str, ...], object] = {}


def call(function: str, *inputs: Tensor) -> Tensor:
    """Run one function in ONNX Runtime."""
    arrays = [x.numpy() for x in inputs]
    return torch.from_numpy(call_arrays(function, *arrays))


def call_arrays(function: str, *arrays: np.ndarray) -> np.ndarray:
    names = [f"x{index}" for index in range(len(arrays))]
    key = (function, *(f"{a.dtype}{a.ndim}" for a in arrays))
    if key not in SESSIONS:
        output = TensorProto.UINT8 if function == "SoftmaxWeights" else TensorProto.INT64
        graph = helper.make_graph(
            [helper.make_node(function, names, ["y"], domain=DOMAIN)],
            "call",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
                )
                for name, array in zip(names, arrays, strict=True)
            ],
            [helper.make_tensor_value_info("y", output, [None] * arrays[0].ndim)],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(
            graph, functions=integer_functions(), opset_imports=opsets, ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        SESSIONS[key] = open_session(model)
    (y,) = SESSIONS[key].run(None, dict(zip(names, arrays, strict=True)))
    return y


def extremes(dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    near = [limits.min, limits.min + 1, -3, -2, -1, 0, 1, 2, 3, limits.max - 1, limits.max]
    return torch.tensor([value for value in near if value >= limits.min], dtype=dtype)


@pytest.mark.parametrize("bits", [0, 1, 2, 31, 62, 63])
def test_shift_right_is_arithmetic(bits: int) -> None:
    x = extremes(torch.int64)
    y = call_arrays("ShiftRight", x.numpy(), np.array(bits, np.uint64))
    assert y.tolist() == (x >> bits).tolist()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
@pytest.mark.parametrize("e", [1, 2, 8, 31, 39, 61, 62])
@pytest.mark.parametrize("m", [0, 2**30, 2**30 + 1, 2**31 - 1])
def test_requantize_at_the_ends(dtype: torch.dtype, e: int, m: int) -> None:
    x = extremes(dtype) if dtype != torch.uint8 else torch.tensor([0, 1, 2, 254, 255]).byte()
    factors = torch.tensor([m], dtype=torch.int32), torch.tensor([e], dtype=torch.int8)
    assert torch.equal(call("Requantize", x, *factors), requantize(x, *factors))


@reproducible
@given(seed=st.integers(0, 2**31), e=st.integers(1, 62), m=st.integers(2**30, 2**31 - 1))
def test_requantize_anywhere_ties_included(seed: int, e: int, m: int) -> None:
    x = integers((3, 50), -(2**31), 2**31 - 1, torch.int32, seed)
    x = torch.where(x % 3 == 0, x >> 24 << 16, x)  # many trailing zeros: ties where m has some too
    factors = torch.tensor([m >> 20 << 20], dtype=torch.int32), torch.tensor([e]).to(torch.int8)
    assert torch.equal(call("Requantize", x, *factors), requantize(x, *factors))


def test_exp2() -> None:
    x = torch.cat([-torch.arange(200_000), torch.tensor([-(2**22), -(2**40), -(2**61)])])
    assert torch.equal(call("Exp2", x), exp2(x))


@pytest.mark.parametrize("scale", [2.0**-12, 0.05, 3.0])
def test_softmax(scale: float) -> None:
    scores = integers((4, 30, 30), -(2**31), 2**31 - 1, torch.int32, 1)
    scores[1] >>= 14
    scores[2] >>= 24
    scores[3] = 7
    attended = torch.rand(4, 1, 30, generator=torch.Generator().manual_seed(2)) < 0.6
    attended[:, :, 3] = True
    m, e = exponent_multiplier(scale)
    expected = softmax_weights(scores, m, e, attended)
    assert torch.equal(call("SoftmaxWeights", scores, m, e, attended), expected)


@pytest.mark.parametrize("scale", [2.0**-13, 0.004, 0.3])
def test_sigmoid_and_swish(scale: float) -> None:
    x = torch.arange(-(2**16) + 1, 2**16, 7, dtype=torch.int32)
    exponent = exponent_multiplier(scale)
    for high in (1, 15, 255):
        actual = call("Sigmoid", x, *exponent, torch.tensor(high))
        assert torch.equal(actual, sigmoid(x, *exponent, high))
    gain = torch.tensor([2**30 + 12345], dtype=torch.int32), torch.tensor([40], dtype=torch.int8)
    for zero in (0, 17):
        actual = call("Swish", x, *exponent, *gain, torch.tensor(zero))
        assert torch.equal(actual, swish(x, exponent, gain) + zero)


def test_square_root() -> None:
    roots = torch.tensor([1, 2, 3, 31, 32, 1000, 2**15, 2**20 + 1, 2**30, 2**31 - 1])
    x = torch.cat([roots**2 - 1, roots**2, roots**2 + 1])
    x = x[x >= 1][None, None]
    assert torch.equal(call("SquareRoot", x), integer_sqrt(x))


def rows(kind: str, channels: int) -> Tensor:
    """(2, channels, 40) int32."""
    if kind == "constant":
        return torch.full((2, channels, 40), -77, dtype=torch.int32)
    if kind == "one spike":
        x = torch.zeros(2, channels, 40, dtype=torch.int32)
        x[:, 0] = 2**31 - 1
        return x
    low, high = {"narrow": (-3, 3), "wide": (-(2**23), 2**23 - 1), "full": (-(2**31), 2**31 - 1)}[
        kind
    ]
    return integers((2, channels, 40), low, high, torch.int32, 4)


@pytest.mark.parametrize("kind", ["constant", "one spike", "narrow", "wide", "full"])
@pytest.mark.parametrize("channels", [2, 16, 177, 4096])
def test_layer_norm(kind: str, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    gamma, beta = torch.randn(2, channels, generator=generator)
    constants = LayerNormConstants.of(gamma, beta, 1e-5, 3e-5, 0.03)
    x = rows(kind, channels)
    assert_layer_norm(x, constants)
    assert_layer_norm(x.clamp(-128, 127).to(torch.int8), constants)


def assert_layer_norm(x: Tensor, constants: LayerNormConstants) -> None:
    expected = layer_norm(x.transpose(1, 2), constants, -(2**40), 2**40).transpose(1, 2)
    column: Callable[[Tensor], Tensor] = lambda values: values[:, None]  # noqa: E731
    m, e, offset = map(column, (constants.m, constants.e, constants.offset))
    channels, eps = torch.tensor(x.shape[1]), torch.tensor(constants.eps)
    assert torch.equal(call("LayerNorm", x, channels, m, e, offset, eps), expected)
