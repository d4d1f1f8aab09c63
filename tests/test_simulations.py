"""Dynamic ranges and rounded weights alone: what calibration is compared with, on a tiny model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import SYNTHESIS, checkpoint, write_project
from torch import Tensor

from zqlib.files import read_json, write_json
from zqlib.integer import reference
from zqlib.integer.operators import Conv1d
from zqlib.models import CTCModel
from zqlib.quantization.calibrate import calibrate
from zqlib.quantization.lower import lower
from zqlib.quantization.nodes import FloatConv
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import quantize, round_features
from zqlib.recognition import FloatRecogniser, IntegerRecogniser, Recogniser
from zqlib.reproduce import reproduce
from zqlib.results import read_records
from zqlib.simulations import SIMULATIONS, DynamicRecogniser, WeightsOnlyRecogniser
from zqlib.synthesis import as_calibration, synthesize

SCHEME = QuantScheme(equalize=False)
LENGTHS = torch.tensor([90, 64])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CTCModel:
    return checkpoint(tmp_path_factory.mktemp("simulations"))


@pytest.fixture(scope="module")
def batches(model: CTCModel) -> list[tuple[Tensor, Tensor]]:
    return as_calibration(synthesize(model.network, 64, SYNTHESIS, progress=False))


@pytest.fixture
def features() -> Tensor:
    """Two utterances, the first of them much louder; there is no silence beyond the second."""
    noise = torch.randn(2, 64, 90, generator=torch.Generator().manual_seed(3))
    return noise * torch.tensor([5.0, 0.5])[:, None, None]


def heard(recogniser: Recogniser, x: Tensor, lengths: Tensor) -> list[Tensor]:
    tokens, ends = recogniser.tokens(x, lengths)
    return [row[:end] for row, end in zip(tokens, ends.tolist(), strict=True)]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dynamic_ranges_are_those_of_the_utterance_alone(
    model: CTCModel, batches: list[tuple[Tensor, Tensor]], features: Tensor
) -> None:
    recogniser = DynamicRecogniser(model, batches, SCHEME)
    dynamic = heard(recogniser, features, LENGTHS)
    alone = []
    for feature, length in zip(features, LENGTHS.tolist(), strict=True):
        data = feature[None, :, :length], torch.tensor([length])
        scales = calibrate(recogniser.graph, [data], SCHEME)
        program = lower(recogniser.graph, scales, SCHEME)
        quantized = round_features(program, scales[program.input], data[0])
        alone.append(reference.run(program, quantized, data[1]).tokens[0])
    static = IntegerRecogniser(quantize(model, batches, SCHEME, {"kind": "synthetic"}))
    assert same(dynamic, alone)
    assert not same(dynamic, heard(static, features, LENGTHS))


@pytest.mark.parametrize("weight_bits", [8, 2])
def test_weights_only_has_the_weights_of_the_program_and_no_ranges(
    model: CTCModel, batches: list[tuple[Tensor, Tensor]], features: Tensor, weight_bits: int
) -> None:
    scheme = QuantScheme(equalize=False, weight_bits=weight_bits)
    simulated = WeightsOnlyRecogniser(model, batches, scheme)
    program = quantize(model, batches, scheme, {"kind": "synthetic"}).program
    weights = {o.name: o.weight for o in program.operators if isinstance(o, Conv1d)}
    convolutions = [o for o in simulated.graph.operators if isinstance(o, FloatConv)]
    assert weights.keys() == {conv.name for conv in convolutions}
    for conv in convolutions:
        integers = weights[conv.name].double().flatten(1)
        real = conv.weight.double().flatten(1)
        step = (integers * real).sum(1) / integers.square().sum(1).clamp(min=1)
        torch.testing.assert_close(integers * step[:, None], real, rtol=1e-5, atol=1e-6)
    expected = torch.cat(heard(FloatRecogniser(model), features, LENGTHS))
    agreement = (torch.cat(heard(simulated, features, LENGTHS)) == expected).float().mean()
    assert agreement > 0.95 if weight_bits == 8 else agreement < 0.9


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the page on word error rates."""
    root = write_project(tmp_path_factory.mktemp("wer"))
    path = root / "workflow" / "profiles" / "smoke.json"
    kinds = ["synthetic", *SIMULATIONS]
    write_json(path, read_json(path) | {"calibrations": kinds, "schemes": ["w8a8"]})
    reproduce(root, "smoke", "wer")
    return root


def test_records_of_simulations_say_what_they_are(done: Path) -> None:
    records = {record.calibration: record for record in read_records(done / "results", "smoke")}
    assert set(records) == {"none", "synthetic", "dynamic", "weights-only"}
    page = (done / "results/smoke/notebooks/wer.ipynb").read_text()
    usual = records["synthetic"]
    assert len({record.hypotheses for record in records.values()}) == 4
    for name, simulation in SIMULATIONS.items():
        record = records[name]
        assert (record.scheme, record.engine) == ("w8a8", simulation.engine)
        assert record.size_mb == usual.size_mb and record.delta_ci95 is not None
        assert record.caveats == (*usual.caveats, simulation.caveat)
        assert f"*{simulation.caveat}*" in page
        assert record.provenance["scheme"] == usual.provenance["scheme"]
        weights = usual.provenance["calibration"]
        assert record.provenance["calibration"] == {"kind": name, "weights": weights}
