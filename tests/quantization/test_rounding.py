"""Points after convolutions: the same function, the same scales, and some more."""

import pytest
import tiny
import tiny_conformer
import torch
from tiny import BLOCKS, N_MELS, features

from zqlib.models import Network
from zqlib.models.jasper import BlockConfig, JasperConfig, JasperCTC
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import Activation, FloatConv
from zqlib.quantization.rounding import linear_layers, round_convolutions
from zqlib.quantization.scheme import QuantScheme


def network(name: str) -> tuple[Network, tuple[torch.Tensor, torch.Tensor]]:
    if name == "conformer":
        return tiny_conformer.network(), (tiny_conformer.features(), tiny_conformer.LENGTHS)
    return tiny.network(name), features([40, 25])


def points(graph: FloatGraph) -> list[str]:
    return [o.output for o in graph.operators if o.output.endswith(".rounded")]


@pytest.mark.parametrize("name", [*BLOCKS, "conformer"])
def test_the_function_and_its_scales_stay(name: str) -> None:
    scheme = QuantScheme(range_method="mse")
    model, data = network(name)
    graph = fold(model, scheme)
    rounded = round_convolutions(graph)
    assert torch.equal(graph.run(*data)[0], rounded.run(*data)[0])
    before, after = (calibrate(g, [data], scheme) for g in (graph, rounded))
    assert {key: after[key] for key in before} == before
    assert sorted(after.keys() - before.keys()) == sorted(points(rounded))


def test_every_convolution_gets_one_reader_that_rounds() -> None:
    scheme = QuantScheme()
    for name in (*BLOCKS, "conformer"):
        graph = round_convolutions(fold(network(name)[0], scheme))
        linear = linear_layers(graph)
        for operator in graph.operators:
            if "Conv" in type(operator).__name__ and operator.name not in linear:
                (reader,) = [o for o in graph.operators if operator.output in o.reads]
                assert isinstance(reader, Activation) and len(reader.inputs) == 1
                assert reader.bits in (None, scheme.gate_bits)


def test_where_points_are_added() -> None:
    scheme = QuantScheme()
    assert points(round_convolutions(fold(tiny.network("separable"), scheme))) == []
    assert points(round_convolutions(fold(tiny.network("residual"), scheme))) == [
        "block1.conv5.rounded", "block1.residual0.rounded",
        "block2.conv1.rounded", "block2.residual0.rounded",
    ]  # fmt: skip
    assert points(round_convolutions(fold(tiny_conformer.network(), scheme))) == []


def test_rounding_again_changes_nothing() -> None:
    once = round_convolutions(fold(tiny.network("dense residual"), QuantScheme()))
    assert round_convolutions(once).operators == once.operators


def test_linear_layers() -> None:
    pointwise = JasperCTC(JasperConfig(N_MELS, (BlockConfig(6, 1, 1),), 3)).eval()
    graph = fold(pointwise, QuantScheme())
    assert linear_layers(graph) == {"decoder"}
    conformer = fold(tiny_conformer.network(), QuantScheme())
    depthwise = {o.name for o in conformer.operators if isinstance(o, FloatConv) and o.groups > 1}
    convolutions = {o.name for o in conformer.operators if isinstance(o, FloatConv)}
    assert linear_layers(conformer) == convolutions - depthwise
    assert len(depthwise) == 2
