"""Bits by layer: the least error that a budget allows, and again the same from its record."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import tiny
import tiny_conformer
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zqlib.errors import InputError
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph, execute
from zqlib.quantization.mixed_precision import (
    allocate,
    bits_by_layer,
    sensitivities,
    with_layer_bits,
)
from zqlib.quantization.nodes import FloatConv, FloatConv2d
from zqlib.quantization.scheme import QuantScheme

SCHEME = QuantScheme(weight_budget=4.5)


def example(name: str) -> tuple[FloatGraph, list[tuple[Tensor, Tensor]]]:
    if name == "conformer":
        graph = fold(tiny_conformer.network(), SCHEME)
        return graph, [(tiny_conformer.features(), tiny_conformer.LENGTHS)]
    return fold(tiny.network(name), SCHEME), [tiny.features([70, 50])]


def layers(graph: FloatGraph) -> list[FloatConv | FloatConv2d]:
    return [o for o in graph.operators if isinstance(o, FloatConv | FloatConv2d)]


def spent(graph: FloatGraph, bits: dict[str, int]) -> float:
    """Average bits of a weight, without sub-scales."""
    weights = {conv.name: conv.weight.numel() for conv in layers(graph)}
    return sum(bits[name] * count for name, count in weights.items()) / sum(weights.values())


ERRORS = st.lists(st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=1, max_size=4)


@tiny.reproducible
@given(ERRORS, st.lists(st.integers(1, 50), min_size=4, max_size=4), st.integers(2, 4))
def test_no_choice_in_the_budget_is_better(
    rows: list[list[float]], weights: list[int], average: int
) -> None:
    errors = {str(index): row for index, row in enumerate(rows)}
    sizes = {name: [2.0 * n, 3.0 * n, 4.0 * n] for name, n in zip(errors, weights, strict=False)}
    budget = float(average * sum(weights[: len(rows)]))
    found = allocate(errors, sizes, budget)
    assert found is not None
    assert sum(sizes[name][index] for name, index in found.items()) <= budget * (1 + 1e-6)
    least = min(
        sum(row[index] for row, index in zip(errors.values(), choice, strict=True))
        for choice in itertools.product(range(3), repeat=len(rows))
        if sum(r[i] for r, i in zip(sizes.values(), choice, strict=True)) <= budget
    )
    total = sum(errors[name][index] for name, index in found.items())
    assert total == pytest.approx(least, abs=1e-4)


def test_a_budget_below_all_choices_has_none() -> None:
    assert allocate({"a": [1.0, 0.5]}, {"a": [2.0, 3.0]}, 1.9) is None


@pytest.mark.parametrize("name", ["separable", "residual", "conformer"])
def test_what_is_measured_is_the_error_of_the_logits(name: str) -> None:
    graph, batches = example(name)
    errors, places = sensitivities(graph, batches, SCHEME)
    (features, lengths), *_ = batches
    features, lengths = features[:2], lengths[:2]
    expected, valid = graph.run(features, lengths)
    assert list(errors) == [conv.name for conv in layers(graph)]
    for conv in layers(graph)[::3]:
        assert errors[conv.name][0] > 10 * errors[conv.name][-1] > 0  # 2 bits and 8
        scale = conv.weight.flatten(1).abs().amax(1).view(-1, *[1] * (conv.weight.ndim - 1)) / 7
        weight = torch.round(conv.weight / scale) * scale

        def step(operator: Any, reads: Any, conv: Any = conv, weight: Tensor = weight) -> Any:
            return execute(replace(conv, weight=weight) if operator is conv else operator, reads)

        logits, _ = graph.run(features, lengths, step=step)
        error = sum(
            float((a - b)[:, :n].double().square().sum())
            for a, b, n in zip(logits, expected, valid, strict=True)
        )
        assert errors[conv.name][2] == pytest.approx(error, rel=1e-3)


def test_places_count_multiplications() -> None:
    graph, _ = example("separable")
    _, places = sensitivities(graph, [tiny.features([70, 70])], SCHEME)
    first, *others = layers(graph)
    assert places[first.name] == 35  # stride 2
    assert {places[conv.name] for conv in others} == {35}


@pytest.mark.parametrize("name", ["separable", "residual", "conformer"])
@pytest.mark.parametrize("budget", [2, 4.5, 8])
def test_the_budget_is_kept_and_spent(name: str, budget: float) -> None:
    graph, batches = example(name)
    bits = bits_by_layer(with_layer_bits(graph, batches, QuantScheme(weight_budget=budget)))
    assert budget - 0.3 <= spent(graph, bits) <= budget + 1e-6
    assert budget != 4.5 or len(set(bits.values())) > 2


def test_sub_scales_count() -> None:
    graph, batches = example("residual")
    scheme = QuantScheme(weight_budget=4.5, weight_group=4)
    bits = bits_by_layer(with_layer_bits(graph, batches, scheme))
    assert spent(graph, bits) < 4.0  # a sub-scale of 3 or 4 bits for every 4 weights
    with pytest.raises(InputError, match=r"3\.\d\d with their sub-scales: 2.5 on average"):
        with_layer_bits(graph, batches, QuantScheme(weight_budget=2.5, weight_group=4))


def test_operations_are_another_budget() -> None:
    """The first layers of a Conformer run at more frames than the others."""
    graph, batches = example("conformer")
    _, places = sensitivities(graph, batches, SCHEME)
    scheme = QuantScheme(weight_budget=4.5, budget_of="operations")
    bits = bits_by_layer(with_layer_bits(graph, batches, scheme))
    work = {conv.name: conv.weight.numel() * places[conv.name] for conv in layers(graph)}
    average = sum(bits[name] * n for name, n in work.items()) / sum(work.values())
    assert 4.2 <= average <= 4.5 + 1e-6
    assert bits != bits_by_layer(with_layer_bits(graph, batches, SCHEME))


def test_an_allocation_is_had_again_without_data() -> None:
    graph, batches = example("residual")
    chosen = with_layer_bits(graph, batches, SCHEME)
    bits = bits_by_layer(chosen)
    again = QuantScheme.from_json(QuantScheme(weight_budget=4.5, layer_bits=bits).to_json())
    assert bits_by_layer(with_layer_bits(graph, [], again)) == bits


def test_a_layer_that_is_not_there_is_refused() -> None:
    graph, _ = example("residual")
    with pytest.raises(InputError, match="bits for 'block9.conv0'"):
        with_layer_bits(graph, [], QuantScheme(layer_bits={"block9.conv0": 4}))
    with pytest.raises(InputError, match="bits for 'block0.relu'"):
        with_layer_bits(graph, [], QuantScheme(layer_bits={"block0.relu": 4}))


def test_layers_that_are_not_named_have_the_bits_of_the_scheme() -> None:
    graph, _ = example("residual")
    found = with_layer_bits(graph, [], QuantScheme(layer_bits={"decoder": 4}))
    assert bits_by_layer(found) == {"decoder": 4}
