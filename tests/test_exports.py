"""What the page on exports counts, and what other machines have left for it."""

from pathlib import Path

import pytest
import tiny
import tiny_conformer
from checkpoints import write_project

from zqlib.experiments.bit_operations import bit_operations
from zqlib.experiments.exports import exports_elsewhere
from zqlib.files import write_json
from zqlib.integer.operators import Attention, Conv1d, Conv2d
from zqlib.machines import machine_folder
from zqlib.parameters import Parameters
from zqlib.quantization.scheme import QuantScheme
from zqlib.results import device_name

FRAMES = 40


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (6, 6)])
def test_bit_operations_of_convolutions(weight_bits: int, activation_bits: int) -> None:
    program, _ = tiny.lowered("separable", QuantScheme(weight_bits, activation_bits))
    rows = bit_operations(program, FRAMES)
    convolutions = {o.name: o for o in program.operators if isinstance(o, Conv1d)}
    assert [row["name"] for row in rows] == list(convolutions)
    frames = FRAMES
    for row in rows:
        conv = convolutions[row["name"]]
        frames = -(-frames // conv.stride)
        assert row["macs"] == conv.weight.numel() * frames
        assert (row["weight_bits"], row["activation_bits"]) == (weight_bits, activation_bits)
        assert row["bops"] == row["macs"] * weight_bits * activation_bits


def test_sub_scales_cost_a_product_for_each_group() -> None:
    scheme = QuantScheme(4, 8, weight_group=4)
    network, features = tiny_conformer.network(), tiny_conformer.features()
    program, _ = tiny_conformer.lowered(network, features, scheme)
    layers = {o.name for o in program.operators if isinstance(o, Conv1d | Conv2d)}
    rows = [row for row in bit_operations(program, FRAMES) if row["name"] in layers]
    assert rows
    for row in rows:  # 8-bit by 4-bit products; of four of them a sum of 14 bits, times 4 bits
        assert row["bops"] == row["macs"] * (4 * 8) + row["macs"] * 14 * 4 // 4


def test_attention_multiplies_two_activations() -> None:
    network, features = tiny_conformer.network(), tiny_conformer.features()
    program, _ = tiny_conformer.lowered(network, features, QuantScheme(4, 8))
    bits = {row["name"]: (row["weight_bits"], row["activation_bits"], row["macs"])
            for row in bit_operations(program, FRAMES)}  # fmt: skip
    attentions = [o for o in program.operators if isinstance(o, Attention)]
    assert attentions
    for attention in attentions:
        channels = attention.content_bias.shape[0]
        assert bits[attention.name] == (8, 8, 3 * channels * 10 * 10)
    assert all(w == 4 for name, (w, _, _) in bits.items() if "attention" not in name)


def test_records_of_other_machines_stay_and_are_known_to_be_old(tmp_path: Path) -> None:
    root = write_project(tmp_path, 1)
    folder = root / "results/smoke/exports"
    elsewhere = {"device": "CPU Babbage with steam, 1 cores", "commit": "of 1843"}
    write_json(folder / "babbage" / "tiny.json", elsewhere)
    write_json(machine_folder(folder) / "tiny.json", elsewhere | {"device": device_name()})
    [(record, current)] = exports_elsewhere(Parameters(profile="smoke", root=root))
    assert record["device"] == "CPU Babbage with steam, 1 cores" and not current
