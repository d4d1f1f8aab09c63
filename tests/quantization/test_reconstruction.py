"""Blocks of weights tuned together: on their grid, and closer to the float model."""

from dataclasses import dataclass

import pytest
import tiny_conformer
import torch
from tiny import BLOCKS, features, network
from torch import Tensor

from zqlib.quantization import reconstruction
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.equalize import equalize
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import lower
from zqlib.quantization.nodes import FloatConv, FloatConv2d
from zqlib.quantization.reconstruction import reconstruct
from zqlib.quantization.scheme import preset
from zqlib.quantization.weight_grid import layer_bits, with_steps
from zqlib.quantization.weights import quantize_weights

SCHEMES = ("w4a8", "w2g4a6", "w3.5g4a8")
NAMES = (*BLOCKS, "conformer")


@dataclass
class Case:
    """A model before and after its layers were rounded one by one, and the calibration data."""

    name: str
    width: str

    def __post_init__(self) -> None:
        self.scheme = preset(self.width, weight_rounding="gptq", bias_correction=True)
        if self.name == "conformer":
            net, self.data = tiny_conformer.network(), (
                tiny_conformer.features(), tiny_conformer.LENGTHS
            )  # fmt: skip
        else:
            net, self.data = network(self.name), features([80, 61, 7])
        self.graph = equalize(fold(net, self.scheme), [self.data], self.scheme)
        self.scales = calibrate(self.graph, [self.data], self.scheme)
        self.rounded = quantize_weights(self.graph, self.scales, [self.data], self.scheme)

    def tuned(self, data: tuple[Tensor, Tensor] | None = None) -> FloatGraph:
        batches = [data or self.data]
        return reconstruct(self.graph, self.rounded, self.scales, batches, self.scheme)


def weights(graph: FloatGraph) -> list[Tensor]:
    return [o.weight for o in graph.operators if isinstance(o, FloatConv | FloatConv2d)]


@pytest.mark.parametrize("width", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_weights_stay_on_the_grid_that_lower_expects(name: str, width: str) -> None:
    case = Case(name, width)
    tuned = case.tuned()
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(tuned), weights(case.rounded), strict=True)
    )
    for before, after in zip(case.graph.operators, tuned.operators, strict=True):
        if isinstance(after, FloatConv | FloatConv2d) and after.weight_bits is not None:
            bits = {"weight_bits": after.weight_bits}
            conv, step = with_steps(type(before)(**(vars(before) | bits)), case.scheme)
            multiples = after.weight.double().view_as(step.expand(-1, -1, after.weight[0].numel()))
            multiples = multiples / step.masked_fill(step == 0, 1.0)
            torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-4)
            assert multiples.abs().max() <= 2 ** (layer_bits(conv, case.scheme) - 1) - 1 + 1e-4
    lower(tuned, case.scales, case.scheme)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_hands_on_what_is_closer_to_the_float_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[tuple[float, float]] = []
    tuned = reconstruction._Block.tuned

    def observed(block, generator):  # type: ignore[no-untyped-def]
        found = tuned(block, generator)
        everything = torch.arange(3)  # utterances
        with torch.no_grad():
            errors.append(tuple(float(block.error(o, everything)) for o in (block.after, found)))
        return found

    monkeypatch.setattr(reconstruction._Block, "tuned", observed)
    case = Case(name, "w4a8")
    case.tuned()
    assert all(after <= before for before, after in errors)
    assert sum(after < before for before, after in errors) > 1


def test_what_lies_beyond_a_length_does_not_matter() -> None:
    case = Case("residual", "w4a8")
    x, lengths = case.data
    louder = x.clone()
    for row, length in zip(louder, lengths.tolist(), strict=True):
        row[:, length:] = 50.0
    for a, b in zip(weights(case.tuned()), weights(case.tuned((louder, lengths))), strict=True):
        assert torch.equal(a, b)


def test_the_same_again_and_nothing_given_is_changed() -> None:
    case = Case("separable", "w4a8")
    kept = [x.clone() for x in (*weights(case.graph), *weights(case.rounded))]
    first, second = case.tuned(), case.tuned()
    for a, b in zip(weights(first), weights(second), strict=True):
        assert torch.equal(a, b) and not a.requires_grad
    for a, b in zip(kept, (*weights(case.graph), *weights(case.rounded)), strict=True):
        assert torch.equal(a, b)
