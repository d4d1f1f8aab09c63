"""Arithmetic of the roofline that predicts latencies, and of the layers that it rests on."""

import json
from dataclasses import asdict, replace

import pytest
from tiny import N_MELS, lowered

from zqlib.benchmark.layers import Layer, layers_of
from zqlib.benchmark.peak import Peak
from zqlib.benchmark.roofline import LayerTime, floor_us, summarise_kinds
from zqlib.benchmark.simulate import T4, Machine, predict_ms, relative_error
from zqlib.integer.operators import Conv1d

ROUND = Machine(
    name="round figures",
    matrix_gop_per_s={"float32": 100, "int8": 400},
    vector_gop_per_s={"float32": 100, "int8": 100},
    bandwidth_gb_per_s=10,
    launch_us=5,
    compute_efficiency=0.5,
    memory_efficiency=0.5,
)
DENSE = Layer("dense", "Conv1d pointwise", operations=2_000_000, elements=10_000, bytes=10_000)
DEPTHWISE = replace(DENSE, name="depthwise", kind="Conv1d depthwise")
COPY = Layer("copy", "Requantize", operations=0, elements=50_000, bytes=50_000)


@pytest.mark.parametrize(
    ("layer", "precision", "expected_us"),
    [
        (DENSE, "float32", 2e6 / 50e9 * 1e6 + 5),  # 40 us of products, 8 us of bytes
        (DENSE, "int8", 2e6 / 200e9 * 1e6 + 5),  # 10 us, 2 us
        (DEPTHWISE, "int8", 2e6 / 50e9 * 1e6 + 5),  # no faster than in float
        (COPY, "float32", 4 * 50_000 / 5e9 * 1e6 + 5),
        (COPY, "int8", 50_000 / 5e9 * 1e6 + 5),
    ],
)
def test_a_layer_takes_the_longer_of_the_two_and_a_launch(
    layer: Layer, precision: str, expected_us: float
) -> None:
    assert 1e3 * predict_ms([layer], ROUND, precision) == pytest.approx(expected_us)


def test_layers_add_up() -> None:
    parts = [predict_ms([layer], ROUND, "int8") for layer in (DENSE, DEPTHWISE, COPY)]
    assert predict_ms([DENSE, DEPTHWISE, COPY], ROUND, "int8") == pytest.approx(sum(parts))


def test_the_t4_has_the_figures_of_its_data_sheet_and_goes_to_json() -> None:
    assert T4.matrix_gop_per_s == {"float32": 8_100, "float16": 65_000, "int8": 130_000}
    assert T4.bandwidth_gb_per_s == 320 and T4.launch_us > 0
    assert 0 < T4.compute_efficiency <= 1 and 0 < T4.memory_efficiency <= 1
    assert json.loads(json.dumps(asdict(T4)))["name"] == T4.name


def test_an_error_has_a_sign() -> None:
    assert relative_error(75, 100) == pytest.approx(-0.25)


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_count_products_and_what_they_move(batch: int) -> None:
    program, _ = lowered("separable")
    convolutions = [o for o in program.operators if isinstance(o, Conv1d)]
    layers = layers_of(program, batch, 40)
    assert [layer.name for layer in layers] == [*(o.name for o in convolutions), "tokens"]
    first, conv = layers[0], convolutions[0]
    frames = 20  # the first convolution has stride 2
    assert first.operations == 2 * conv.weight.numel() * batch * frames
    out = batch * frames * conv.weight.shape[0]
    assert first.elements == conv.weight.numel() + batch * 40 * N_MELS + out
    assert first.bytes == first.elements and first.depthwise == (conv.groups > 1)
    classes = program.tensors[program.logits].channels
    logits, tokens = batch * frames * classes, batch * frames
    assert layers[-1].elements == logits + tokens
    assert layers[-1].bytes == 4 * (logits + tokens)  # both int32


def test_kinds_are_sorted_by_what_they_lose() -> None:
    peak = Peak(threads=1, float32=50, bfloat16=100, int8=200, copy_gb_per_s=10)
    assert floor_us(DENSE, peak) == pytest.approx(10) and floor_us(COPY, peak) == pytest.approx(5)
    times = [LayerTime(COPY, 6), LayerTime(DENSE, 12), LayerTime(DENSE, 18), LayerTime(COPY, 6)]
    dense, copies = summarise_kinds(times, peak)
    assert (dense.kind, dense.layers, dense.ms) == ("Conv1d pointwise", 2, pytest.approx(0.03))
    assert dense.floor_ms == pytest.approx(0.02)
    assert dense.gop_per_s == pytest.approx(4e6 / 30e-6 / 1e9)
    assert dense.peak_pct == pytest.approx(100 * dense.gop_per_s / 200)
    assert copies.floor_ms == pytest.approx(0.01) and copies.peak_pct == 0


def test_a_measured_machine_reaches_its_own_figures() -> None:
    peak = Peak(threads=1, float32=50, bfloat16=100, int8=200, copy_gb_per_s=10)
    here = peak.as_machine("here")
    assert predict_ms([DENSE], here, "int8") == pytest.approx(0.01)
    assert predict_ms([DEPTHWISE], here, "bfloat16") == pytest.approx(0.04)
