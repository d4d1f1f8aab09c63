"""Another form of a Conformer, whose channels lie around zero."""

from dataclasses import replace

import pytest
import tiny
import tiny_conformer
import torch
from test_lower import quantized_run
from torch import Tensor

from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import FloatAttention, FloatConv, FloatLayerNorm
from zqlib.quantization.recentre import recentre
from zqlib.quantization.scheme import QuantScheme

SCHEME = QuantScheme()
BATCH = tiny_conformer.features(), tiny_conformer.LENGTHS
PARTS = ("q", "k", "v", "pos")


def conformer(offset: float = 0.0, parts: tuple[str, ...] = PARTS) -> FloatGraph:
    """A folded Conformer; so much is added to what its attentions read."""
    graph = fold(tiny_conformer.network(), SCHEME)

    def adapted(operator: object) -> object:
        if isinstance(operator, FloatConv) and operator.name.endswith(
            tuple(f"attention.linear_{part}" for part in parts)
        ):
            bias = torch.zeros(operator.weight.shape[0]) if operator.bias is None else operator.bias
            return replace(operator, bias=bias + offset)
        return operator

    return replace(graph, operators=tuple(map(adapted, graph.operators)))


def means(graph: FloatGraph) -> dict[str, Tensor]:
    seen = {}
    graph.run(*BATCH, lambda name, x: seen.update({name: x.mean(1)}))
    return seen


def logits(graph: FloatGraph) -> list[Tensor]:
    found, lengths = graph.run(*BATCH)
    return [row[:, :length] for row, length in zip(found, lengths, strict=True)]


@pytest.mark.parametrize("part", PARTS)
def test_the_function_stays_the_same(part: str) -> None:
    graph = conformer(5.0, (part,))
    moved = recentre(graph, [BATCH], SCHEME)
    assert moved is not graph
    for row, other in zip(logits(graph), logits(moved), strict=True):
        torch.testing.assert_close(other, row, rtol=1e-4, atol=1e-4)


def test_the_means_are_zero_over_all_batches() -> None:
    graph = conformer(5.0)
    features, lengths = BATCH
    parts = [(features[:1], lengths[:1]), (features[1:], lengths[1:])]
    before, after = means(graph), means(recentre(graph, parts, SCHEME))
    attentions = [o for o in graph.operators if isinstance(o, FloatAttention)]
    norms = [o.output for o in graph.operators if isinstance(o, FloatLayerNorm) and not o.bits]
    names = [*norms, *(name for o in attentions for name in o.reads)]
    assert len(attentions) == 2 and len(norms) == 9
    for name in names:
        if "pos" not in name:  # two batches have more rows of positions, of other distances
            assert after[name].abs().max() < 1e-4 < before[name].abs().max()


def test_nothing_else_is_moved() -> None:
    graph = conformer()
    before, after = means(graph), means(recentre(graph, [BATCH], SCHEME))
    streams = [name for name in before if name.endswith(("stream", "gate", "hidden"))]
    assert streams
    for name in streams:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-4)


def test_a_scheme_without_it_keeps_the_graph() -> None:
    graph = conformer()
    assert recentre(graph, [BATCH], replace(SCHEME, recentre=False)) is graph


@pytest.mark.parametrize("family", ["separable", "residual"])
def test_a_network_without_attention_keeps_its_graph(family: str) -> None:
    graph = fold(tiny.network(family), SCHEME)
    assert recentre(graph, [tiny.features([70, 50], seed=5)], SCHEME) is graph


@pytest.mark.parametrize("part", PARTS)
def test_integers_come_closer_to_the_float_logits(part: str) -> None:
    graph = conformer(20.0, (part,))
    expected = torch.cat(logits(graph), 1)
    errors = []
    for form in (graph, recentre(graph, [BATCH], SCHEME)):
        scales = calibrate(form, [BATCH], SCHEME)
        output, rows = quantized_run(form, SCHEME, *BATCH, scales)
        found = torch.cat([row[:, :n] for row, n in zip(rows, output.lengths, strict=True)], 1)
        errors.append(float((found - expected).norm() / expected.norm()))
    assert 1.2 * errors[1] < errors[0]
