"""A convolution is its weights times patches of its input."""

from collections.abc import Sequence

import pytest
import tiny
import tiny_conformer
import torch
from torch import Tensor

from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph, Value, execute
from zqlib.quantization.nodes import FloatConv, FloatConv2d, FloatOperator
from zqlib.quantization.patches import patches, weight_rows
from zqlib.quantization.scheme import QuantScheme


def check_every_convolution(graph: FloatGraph, features: Tensor, lengths: Tensor) -> None:
    seen = []

    def step(operator: FloatOperator, reads: Sequence[Value]) -> Value:
        result, result_lengths = execute(operator, reads)
        if isinstance(operator, FloatConv | FloatConv2d):
            x, valid = reads[0]
            for index, (length, produced) in enumerate(zip(valid, result_lengths, strict=True)):
                columns = patches(operator, x[index, :, 0, :length])
                product = (weight_rows(operator) @ columns.double()).flatten(0, 1)
                if operator.bias is not None:
                    product += operator.bias[:, None]
                channels = operator.weight.shape[0]
                # of a two-dimensional one, the frames come before the bands
                expected = result[index, :, 0, :produced].view(channels, -1, produced)
                expected = expected.transpose(1, 2).flatten(1)
                assert torch.allclose(product.float(), expected, rtol=1e-4, atol=1e-4)
            seen.append(operator.name)
        return result, result_lengths

    graph.run(features, lengths, step=step)
    assert seen == [o.name for o in graph.operators if isinstance(o, FloatConv | FloatConv2d)]


@pytest.mark.parametrize("topology", tiny.BLOCKS)
def test_convolutions_of_a_jasper(topology: str) -> None:
    graph = fold(tiny.network(topology), QuantScheme())
    check_every_convolution(graph, *tiny.features([40, 23]))


def test_convolutions_of_a_conformer() -> None:
    graph = fold(tiny_conformer.network(), QuantScheme())
    check_every_convolution(graph, tiny_conformer.features(), tiny_conformer.LENGTHS)
