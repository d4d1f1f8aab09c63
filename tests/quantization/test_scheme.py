"""Schemes: named, strict, and the same after a trip through JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import reproducible

from zqlib.errors import InputError
from zqlib.quantization.scheme import QuantScheme, preset, usual_name, usual_scheme


@reproducible
@given(
    st.builds(
        QuantScheme,
        weight_bits=st.integers(2, 8),
        activation_bits=st.integers(2, 8),
        unsigned_relu=st.booleans(),
        range_method=st.sampled_from(["minmax", "percentile", "mse", "moving-average"]),
        percentile=st.floats(50, 100, exclude_min=True),
        stream_bits=st.integers(8, 24),
        gate_bits=st.integers(8, 16),
        residual_sum=st.sampled_from(["whole", "partial", "shared"]),
        signed_sums=st.booleans(),
        weight_range_method=st.sampled_from(["minmax", "mse"]),
        weight_rounding=st.sampled_from(["nearest", "gptq", "adaround"]),
        bias_correction=st.booleans(),
        block_reconstruction=st.booleans(),
        weight_group=st.none() | st.integers(2, 4096),
        weight_budget=st.none() | st.floats(2, 8),
        budget_of=st.sampled_from(["size", "operations"]),
        layer_bits=st.dictionaries(st.text(max_size=4), st.integers(2, 8), max_size=3),
    )
)
def test_scheme_survives_json(scheme: QuantScheme) -> None:
    assert QuantScheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


def test_weights_that_leave_an_end_unused_go_to_the_nearest_level() -> None:
    scheme = QuantScheme(both_ends=False)
    assert QuantScheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme
    with pytest.raises(InputError, match="nearest level"):
        QuantScheme(both_ends=False, weight_rounding="gptq")
    with pytest.raises(InputError, match="nearest level"):
        QuantScheme(both_ends=False, block_reconstruction=True)
    with pytest.raises(InputError, match="nearest level"):
        QuantScheme(both_ends=False, weight_group=16)


@pytest.mark.parametrize("family", ["quartznet", "jasper", "conformer"])
def test_usual_methods_give_way_to_a_choice(family: str) -> None:
    whole = usual_scheme("w8a8", family)
    assert whole.weight_rounding == ("nearest" if family == "jasper" else "gptq")
    assert whole.bias_correction == (family != "jasper")
    assert whole.range_method == ("mse" if family == "jasper" else "minmax")
    few = usual_scheme("w6a6", family)
    ranges = "percentile" if family == "conformer" else "mse"
    assert (few.weight_rounding, few.range_method) == ("gptq", ranges)
    assert usual_scheme("w4a8", family).weight_rounding == "adaround"
    assert usual_scheme("w4a8", family).block_reconstruction
    assert not few.block_reconstruction and not whole.block_reconstruction
    chosen = usual_scheme("w4a8", family, weight_rounding="nearest", range_method="percentile")
    assert (chosen.name, chosen.weight_rounding, chosen.range_method) == (
        "w4a8", "nearest", "percentile",
    )  # fmt: skip
    assert not chosen.block_reconstruction


def test_unknown_key_is_refused() -> None:
    with pytest.raises(InputError, match="unknown key 'weigth_bits'"):
        QuantScheme.from_json({"weigth_bits": 8})


@pytest.mark.parametrize("field", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("bits", [1, 9, 0, -8, 8.0, True, "8", None])
def test_impossible_bits_are_refused(field: str, bits: Any) -> None:
    with pytest.raises(InputError, match=f"{field} is .* from 2 to 8"):
        QuantScheme(**{field: bits})
    with pytest.raises(InputError):
        QuantScheme.from_json({field: bits})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("range_method", "entropy"),
        ("range_method", None),
        ("percentile", 50),
        ("percentile", 100.1),
        ("percentile", float("nan")),
        ("percentile", "99"),
        ("percentile", True),
        ("unsigned_relu", 1),
        ("unsigned_relu", "no"),
        ("both_ends", 0),
        ("signed_sums", None),
        ("stream_bits", 7),
        ("stream_bits", 25),
        ("gate_bits", 17),
        ("gate_bits", None),
        ("residual_sum", "own"),
        ("residual_sum", None),
        ("weight_range_method", "percentile"),
        ("weight_rounding", "stochastic"),
        ("bias_correction", 1),
        ("weight_group", 1),
        ("weight_group", 4097),
        ("weight_group", 16.0),
        ("weight_budget", 1.9),
        ("weight_budget", float("nan")),
        ("weight_budget", True),
        ("weight_budget", "4"),
        ("budget_of", "bops"),
        ("layer_bits", {"decoder": 9}),
        ("layer_bits", {"decoder": 4.5}),
        ("layer_bits", ["decoder"]),
        ("layer_bits", None),
    ],
)
def test_impossible_value_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InputError):
        QuantScheme(**{field: value})


@pytest.mark.parametrize("name", [f"w{w}a{a}" for w in range(2, 9) for a in range(2, 9)])
def test_preset_has_its_name(name: str) -> None:
    assert preset(name).name == name


def test_preset_with_sub_scales() -> None:
    scheme = preset("w4g32a8")
    assert scheme == QuantScheme(4, 8, weight_group=32)
    assert scheme.name == "w4g32a8"
    with pytest.raises(InputError, match="weight_group is 1"):
        preset("w4g1a8")


def test_preset_with_bits_on_average() -> None:
    assert preset("w4.5g16a8") == QuantScheme(weight_budget=4.5, weight_group=16)
    assert (preset("w4.5a6").name, preset("w4.0a8").name) == ("w4.5a6", "w4.0a8")
    assert usual_scheme("w4.5a8", "quartznet").weight_rounding == "adaround"
    assert hash(QuantScheme(layer_bits={"decoder": 4})) == hash(QuantScheme())
    with pytest.raises(InputError, match=r"weight_budget is 1\.5"):
        preset("w1.5a8")


def test_preset_takes_overrides() -> None:
    assert preset("w6a4", range_method="mse") == QuantScheme(6, 4, range_method="mse")


@pytest.mark.parametrize("name", ["w9a8", "w1a8", "w8a10", "w0a0"])
def test_preset_beyond_the_bits_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="from 2 to 8"):
        preset(name)


@pytest.mark.parametrize("name", ["", "int8", "w8", "a8w8", "W8A8", "w8a8 ", "w8a8\n", "w-8a8"])
def test_malformed_preset_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="w<bits>a<bits>"):
        preset(name)


def test_what_a_number_of_bits_stands_for() -> None:
    names = [usual_name(bits) for bits in range(2, 9)]
    assert names == ["w2g16a8", "w3g16a8", "w4g16a8", "w5g16a8", "w6a6", "w7a7", "w8a8"]
    assert all(preset(name).name == name for name in names)
