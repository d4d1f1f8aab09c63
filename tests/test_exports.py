"""What the page on exports counts."""

import pytest
import tiny
import tiny_conformer

from zqlib.experiments.bit_operations import bit_operations
from zqlib.integer.operators import Attention, Conv1d, Conv2d
from zqlib.quantization.scheme import QuantScheme

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
