"""Weights that a scheme's methods put on a grid, and `lower` finds there."""

from typing import Any

import pytest
import tiny
import tiny_conformer
import torch
from torch import Tensor

from zqlib.integer.operators import Conv2d
from zqlib.integer.program import Conv1d
from zqlib.integer.reference import run
from zqlib.quantization import weights
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import logits_step, lower
from zqlib.quantization.nodes import FloatConv, FloatConv2d
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weights import quantize_weights
from zqlib.quantized_model import round_features

METHODS: list[dict[str, Any]] = [
    {},
    {"weight_range_method": "mse"},
    {"bias_correction": True},
    {"weight_rounding": "gptq"},
    {"weight_rounding": "adaround"},
    {"weight_range_method": "mse", "weight_rounding": "gptq", "bias_correction": True},
    {"weight_group": 4},
    {"weight_group": 4, "weight_range_method": "mse", "weight_rounding": "gptq",
     "bias_correction": True},
    {"weight_group": 4, "weight_rounding": "adaround", "bias_correction": True},
]  # fmt: skip


def example(name: str, scheme: QuantScheme) -> tuple[FloatGraph, dict[str, float], Any]:
    """A graph, its scales and a batch of two lengths and another one of its own."""
    if name == "conformer":
        graph = fold(tiny_conformer.network(), scheme)
        batches = [(tiny_conformer.features(), tiny_conformer.LENGTHS)]
    else:
        graph = fold(tiny.network(name), scheme)
        batches = [tiny.features([70, 50]), tiny.features([90], seed=1)]
    return graph, calibrate(graph, batches, scheme), batches


def convolutions(graph: FloatGraph) -> list[FloatConv | FloatConv2d]:
    return [o for o in graph.operators if isinstance(o, FloatConv | FloatConv2d)]


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("name", ["residual", "dense residual", "conformer"])
def test_lower_finds_the_weights_on_their_grid(name: str, methods: dict[str, Any]) -> None:
    scheme = QuantScheme(4, 8, **methods)
    graph, scales, batches = example(name, scheme)
    quantized = quantize_weights(graph, scales, batches, scheme)
    program = lower(quantized, scales, scheme)
    lowered = [o for o in program.operators if isinstance(o, Conv1d | Conv2d)]
    for conv, integer in zip(convolutions(quantized), lowered, strict=True):
        assert conv.weight_scale is not None
        real = integer.weight.double() * conv.weight_scale.view(-1, *[1] * (conv.weight.ndim - 1))
        assert (integer.weight_bits, integer.group_size) == (4, scheme.weight_group)
        assert integer.weight.abs().max() <= (7 if scheme.weight_group is None else 7 * 16)
        if methods:
            torch.testing.assert_close(real.float(), conv.weight, rtol=1e-6, atol=0)


def test_the_plain_scheme_changes_no_program() -> None:
    scheme = QuantScheme(4, 8)
    graph, scales, batches = example("residual", scheme)
    quantized = quantize_weights(graph, scales, batches, scheme)
    programs = [lower(g, scales, scheme).operators for g in (graph, quantized)]
    for before, after in zip(*programs, strict=True):
        if isinstance(before, Conv1d) and isinstance(after, Conv1d):
            assert torch.equal(before.weight, after.weight)


def loss(name: str, **methods: Any) -> float:
    """Mean squared error of the logits on what the model was calibrated on."""
    scheme = QuantScheme(3, 8, **methods)
    graph, scales, batches = example(name, scheme)
    program = lower(quantized := quantize_weights(graph, scales, batches, scheme), scales, scheme)
    step = logits_step(quantized, scales, scheme)
    total = 0.0
    for features, lengths in batches:
        expected, valid = graph.run(features, lengths)
        logits = run(program, round_features(program, scales["features"], features), lengths).logits
        for row, real, length in zip(logits, expected, valid, strict=True):
            total += float((row * step - real)[:, :length].square().sum())
    return total


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
@pytest.mark.parametrize("name", ["residual", "dense", "conformer"])
def test_roundings_that_see_the_data_are_nearer_to_the_float_model(
    name: str, rounding: str
) -> None:
    assert loss(name, weight_rounding=rounding) < 0.8 * loss(name)


def test_corrected_biases_restore_the_means() -> None:
    """A single layer: its mean output over the data is the float one's, to the rounding."""
    weight = torch.randn(5, tiny.N_MELS, 1, generator=torch.Generator().manual_seed(2))
    graph = FloatGraph(
        (FloatConv("conv", "features", "logits", weight, None),), "features", tiny.N_MELS, "logits"
    )
    x, lengths = tiny.features([60, 40])
    x = x + 2 * (x != 0)  # a layer without a mean input has nothing to correct
    scheme = QuantScheme(3, 8, bias_correction=True)
    scales = calibrate(graph, [(x, lengths)], scheme)
    quantized = quantize_weights(graph, scales, [(x, lengths)], scheme)

    def mean(g: FloatGraph) -> Tensor:
        logits, _ = g.run(x, lengths)
        return torch.cat([row[:, :n] for row, n in zip(logits, lengths, strict=True)], 1).mean(1)

    (conv,) = convolutions(quantized)
    assert not torch.allclose(conv.weight, weight, atol=0.05)
    assert torch.allclose(mean(quantized), mean(graph), atol=0.01)


def test_inputs_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loss("dense", weight_rounding="gptq")
    monkeypatch.setattr(weights, "_MOST_INPUTS", 7)
    assert whole < loss("dense", weight_rounding="gptq") < loss("dense")


@pytest.mark.parametrize("name", ["residual", "dense", "conformer"])
def test_sub_scales_are_nearer_to_the_float_model(name: str) -> None:
    assert loss(name, weight_group=4) < 0.7 * loss(name)


def test_sub_scales_of_a_channel_that_its_bias_widens() -> None:
    """Such weights count for nothing, but must still be products of few bits."""
    weight = torch.randn(2, 8, 1, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([0.1, 2.0**30])
    conv = FloatConv("conv", "features", "logits", weight, bias)
    graph = FloatGraph((conv,), "features", 8, "logits")
    for scale in (1e-1, 1.0, 1e1):
        scheme = QuantScheme(4, 8, weight_group=4)
        quantized = quantize_weights(graph, {"features": scale}, [], scheme)
        program = lower(quantized, {"features": scale}, scheme)
        assert isinstance(program.operators[0], Conv1d)
        assert program.operators[0].weight[0].abs().max() > 7
