"""Another form of the same function, which loses less when it is rounded."""

from dataclasses import replace

import pytest
import tiny
import tiny_conformer
import torch
from test_lower import quantized_run
from torch import Tensor

from zqlib.quantization.calibrate import activation_levels, calibrate, zero_points
from zqlib.quantization.equalize import equalize
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import Activation, FloatAttention, FloatLayerNorm, FloatProduct
from zqlib.quantization.scheme import QuantScheme

SCHEME = QuantScheme()


def graph_and_batch(family: str) -> tuple[FloatGraph, tuple[Tensor, Tensor]]:
    if family == "conformer":
        batch = tiny_conformer.features(), tiny_conformer.LENGTHS
        return fold(tiny_conformer.network(), SCHEME), batch
    return fold(tiny.network(family), SCHEME), tiny.features([70, 50], seed=5)


def ranges(graph: FloatGraph, batch: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest value per channel of every quantized tensor."""
    seen = {}
    graph.run(*batch, lambda name, x: seen.update({name: (x.amin(1), x.amax(1))}))
    return seen


@pytest.mark.parametrize("family", ["separable", "residual", "conformer"])
def test_the_function_stays_the_same(family: str) -> None:
    graph, batch = graph_and_batch(family)
    expected, lengths = graph.run(*batch)
    actual, _ = equalize(graph, [batch], SCHEME).run(*batch)
    for row, other, length in zip(expected, actual, lengths, strict=True):
        torch.testing.assert_close(other[:, :length], row[:, :length], rtol=1e-4, atol=1e-4)


def test_a_scheme_without_it_keeps_the_graph() -> None:
    graph, batch = graph_and_batch("conformer")
    assert equalize(graph, [batch], replace(SCHEME, equalize=False)) is graph


def test_ranges_of_a_layer_norm_are_drawn_together_by_their_root() -> None:
    graph, batch = graph_and_batch("conformer")
    before, after = ranges(graph, batch), ranges(equalize(graph, [batch], SCHEME), batch)
    names = [o.output for o in graph.operators if isinstance(o, FloatLayerNorm) and not o.bits]
    assert names
    for name in names:
        width, narrowed = (torch.maximum(-low, high) for low, high in (before[name], after[name]))
        relative = (narrowed / narrowed.max()).double()
        expected = (width / width.max()).sqrt().double()
        torch.testing.assert_close(relative, expected, rtol=1e-3, atol=1e-3)


def test_keys_or_positions_fill_every_channel() -> None:
    graph, batch = graph_and_batch("conformer")
    attention = next(o for o in graph.operators if isinstance(o, FloatAttention))
    after = ranges(equalize(graph, [batch], SCHEME), batch)
    _, key, _, positions = attention.reads
    largest = [torch.maximum(-low, high) for low, high in (after[key], after[positions])]
    relative = torch.maximum(*(width / width.max() for width in largest))
    torch.testing.assert_close(relative, torch.ones_like(relative), rtol=1e-3, atol=1e-3)


def test_gated_values_and_products_are_drawn_together_by_the_same_factors() -> None:
    graph, batch = graph_and_batch("conformer")
    before, after = ranges(graph, batch), ranges(equalize(graph, [batch], SCHEME), batch)
    pairs = [o.reads[0] for o in graph.operators if isinstance(o, FloatProduct)]
    assert len(pairs) == 2
    for value in pairs:
        product = value.replace("value", "glu")
        relative, factors = [], []
        for name in (value, product):
            width, changed = (
                torch.maximum(-low, high) for low, high in (before[name], after[name])
            )
            relative.append(width / width.max())
            factors.append(width / changed)
        expected = (relative[0] * relative[1]).sqrt().sqrt()
        for factor in factors:
            torch.testing.assert_close(factor, expected, rtol=1e-3, atol=1e-3)


def test_depthwise_outputs_begin_at_their_smallest_value() -> None:
    graph, batch = graph_and_batch("separable")
    after = equalize(graph, [batch], SCHEME)
    depthwise = [o for o in after.operators if isinstance(o, Activation) and o.depth]
    assert len(depthwise) >= 2
    seen, scales = ranges(after, batch), calibrate(after, [batch], SCHEME)
    zeros, levels = zero_points(after, scales, SCHEME), activation_levels(after, SCHEME)
    for operator in depthwise:
        low, high = seen[operator.output]
        assert float(low.min()) == pytest.approx(-operator.depth, rel=1e-5)
        assert (high >= -low).all()
        assert levels[operator.output] == (0, 255)
        assert zeros[operator.output] == round(operator.depth / scales[operator.output]) > 0


def test_signed_activations_keep_their_zero() -> None:
    graph, batch = graph_and_batch("separable")
    after = equalize(graph, [batch], QuantScheme(unsigned_relu=False, offset_swish=False))
    assert not any(isinstance(o, Activation) and o.depth for o in after.operators)


def test_integers_come_closer_to_the_float_logits() -> None:
    graph, (x, lengths) = graph_and_batch("separable")
    expected, _ = graph.run(x, lengths)
    errors = []
    for form in (graph, equalize(graph, [(x, lengths)], SCHEME)):
        scales = calibrate(form, [(x, lengths)], SCHEME)
        _, logits = quantized_run(form, SCHEME, x, lengths, scales)
        errors.append(float((logits[0] - expected[0]).norm() / expected[0].norm()))
    assert errors[1] < errors[0] < 0.1
