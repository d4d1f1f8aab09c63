"""Models in float and with Q/DQ in ONNX Runtime: what they compute, and what runs in integers."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import tiny
import tiny_conformer
import torch
from hardware import needs_exact_products
from onnx import TensorProto
from tiny import BLOCKS, features
from torch import Tensor

import zqlib
from zqlib.errors import InputError
from zqlib.export.inspection import count_layers
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_qdq import export_qdq
from zqlib.export.runtime import open_session
from zqlib.integer import reference
from zqlib.models import Network, load_model
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import lower
from zqlib.quantization.nodes import Activation
from zqlib.quantization.rounding import calibrate_rounded, round_convolutions
from zqlib.quantization.scheme import QuantScheme, preset

CHECKPOINTS = sorted((Path(zqlib.__file__).parent / "checkpoints").glob("*.nemo"))
NAMES = [*BLOCKS, "conformer"]
FLAVOURS = {"u8s8": QuantScheme(), "s8s8": QuantScheme(unsigned_relu=False, offset_swish=False)}


@dataclass
class Case:
    """A network, features, and what calibration says of them."""

    network: Network
    features: Tensor
    lengths: Tensor
    graph: FloatGraph
    scales: dict[str, float]
    scheme: QuantScheme

    @property
    def layers(self) -> int:
        return sum("Conv" in type(operator).__name__ for operator in self.graph.operators)

    def qdq(self) -> onnx.ModelProto:
        return export_qdq(self.graph, self.scales, self.scheme)


def case(name: str, scheme: QuantScheme) -> Case:
    if name == "conformer":
        network: Network = tiny_conformer.network()
        data = tiny_conformer.features(), tiny_conformer.LENGTHS
    else:
        network, data = tiny.network(name), features([80, 61, 7])
    graph = fold(network, scheme)
    return Case(network, *data, graph, calibrate_rounded(graph, [data], scheme), scheme)


def run(model: onnx.ModelProto, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    session = open_session(model)
    outputs = session.run(
        ["logprobs", "output_length"], {"audio_signal": x.numpy(), "length": lengths.numpy()}
    )
    return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])


def valid(values: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, classes) to the valid (frames of all, classes), float64."""
    return torch.cat([row[:n] for row, n in zip(values, lengths, strict=True)]).double()


def snr_db(actual: Tensor, expected: Tensor) -> float:
    """Of logits, whose common scale and mean do not matter."""
    actual, expected = (x - x.mean(1, keepdim=True) for x in (actual, expected))
    gain = (actual * expected).sum() / actual.square().sum()
    error = (gain * actual - expected).square().sum() / expected.square().sum()
    return float(-10 * torch.log10(error))


@pytest.mark.parametrize("name", NAMES)
def test_float_is_the_network(name: str) -> None:
    given = case(name, QuantScheme())
    model = export_float(given.graph)
    logprobs, lengths = run(model, given.features, given.lengths)
    with torch.no_grad():
        expected, expected_lengths = given.network(given.features, given.lengths)
    assert torch.equal(lengths, expected_lengths)
    assert logprobs.shape == expected.shape
    # relative too: sums of a random network are large, and their order depends on the threads
    pair = valid(logprobs, lengths), valid(expected, lengths)
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-4)
    count = count_layers(model)
    assert (len(count.integer), len(count.float)) == (0, given.layers)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_runs_in_integers(name: str) -> None:
    given = case(name, FLAVOURS["u8s8"])
    count = count_layers(given.qdq())
    assert count.float == ()
    assert len(count.integer) == given.layers
    attention = 3 * 2  # products of an attention, in each of two layers
    assert len(count.float_products) == (attention if name == "conformer" else 0)


@needs_exact_products
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_qdq_follows_the_float_and_the_integer_model(name: str, flavour: str) -> None:
    given = case(name, FLAVOURS[flavour])
    logprobs, lengths = run(given.qdq(), given.features, given.lengths)
    with torch.no_grad():
        expected, expected_lengths = given.network(given.features, given.lengths)
    assert torch.equal(lengths, expected_lengths)
    program = lower(given.graph, given.scales, given.scheme)  # of the same calibration
    kind = program.tensors[program.input]
    x = torch.round(given.features / given.scales[given.graph.input])
    output = reference.run(program, x.clamp(kind.low, kind.high).to(torch.int8), given.lengths)
    actual = valid(logprobs, lengths)
    logits = valid(output.logits.transpose(1, 2), lengths)
    assert snr_db(actual, valid(expected, lengths)) > 20
    assert snr_db(actual, logits) > 20
    assert (actual.argmax(1) == logits.argmax(1)).double().mean() >= 0.95


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_gives_what_each_gives_alone(name: str, flavour: str) -> None:
    given = case(name, FLAVOURS[flavour])
    for model in (given.qdq(), export_float(given.graph)):
        together, lengths = run(model, given.features, given.lengths)
        for row, length, x, valid_frames in zip(
            together, given.lengths, given.features, lengths, strict=True
        ):
            alone, alone_length = run(model, x[None, :, :length].contiguous(), length[None])
            assert alone_length[0] == valid_frames == alone.shape[1]
            assert float((alone[0] - row[:valid_frames]).abs().max()) < 1e-3


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_stored(flavour: str) -> None:
    """int8 weights with zero point 0, biases that no two layers share, types of the flavour."""
    given = case("residual", FLAVOURS[flavour])
    graph = given.qdq().graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    assert len(stored) == len(graph.initializer)
    biases = []
    for operator in given.graph.operators:
        if "Conv" not in type(operator).__name__:
            continue
        assert stored[f"{operator.name}.weight"].data_type == TensorProto.INT8
        scale = onnx.numpy_helper.to_array(stored[f"{operator.name}.weight.scale"])
        assert scale.shape == (operator.weight.shape[0],)
        if operator.bias is not None and operator.name != "decoder":
            biases.append(stored[f"{operator.name}.bias"].data_type)
    wanted = TensorProto.INT32 if flavour == "u8s8" else TensorProto.FLOAT
    assert biases and set(biases) == {wanted}
    zeros = {
        name: int(onnx.numpy_helper.to_array(tensor))
        for name, tensor in stored.items()
        if name.endswith(".zero")
    }
    if flavour == "s8s8":
        assert set(zeros.values()) == {0}
        assert all(stored[name].data_type == TensorProto.INT8 for name in zeros)
    else:
        unsigned = {name for name, zero in zeros.items() if zero == 0}
        assert unsigned and all(name.endswith("relu.zero") for name in unsigned)
        assert {zeros[name] for name in zeros.keys() - unsigned} == {128}


def test_summands_have_the_step_of_their_sum_where_they_fit() -> None:
    """They are then the integers of the program."""
    given = case("residual", FLAVOURS["u8s8"])
    stored = {tensor.name: tensor for tensor in given.qdq().graph.initializer}
    pairs = [
        (name, operator.output)
        for operator in round_convolutions(given.graph).operators
        if isinstance(operator, Activation) and len(operator.inputs) > 1
        for name in operator.inputs
    ]
    assert {given.scales[summand] < given.scales[total] for summand, total in pairs} == {
        True,
        False,
    }
    for summand, total in pairs:
        step = max(given.scales[summand], given.scales[total])
        assert onnx.numpy_helper.to_array(stored[f"{summand}.scale"]) == pytest.approx(step)


def test_one_branch_of_a_residual_sum_is_not_rounded_for_tensorrt() -> None:
    """What is rounded between a convolution and a sum cannot run in the convolution's kernel."""
    for flavour, unrounded in (("u8s8", 0), ("s8s8", 1)):
        graph = case("residual", FLAVOURS[flavour]).qdq().graph
        writer = {node.output[0]: node.op_type for node in graph.node}
        sums = [
            node for node in graph.node
            if node.op_type == "Add" and "DequantizeLinear" in map(writer.get, node.input)
        ]  # fmt: skip
        assert sums
        for node in sums:
            assert [writer[name] for name in node.input].count("Conv") == unrounded


def test_what_a_depthwise_convolution_hands_to_a_swish_is_not_rounded() -> None:
    """8 bits are too few there; the program has 16."""
    graph = case("conformer", FLAVOURS["u8s8"]).qdq().graph
    kept = [node.name for node in graph.node if node.op_type == "ConvInteger"]
    assert kept == [f"layer{layer}.conv.depthwise.conv" for layer in (0, 1)]


def test_identical_biases_stay_apart() -> None:
    """ONNX Runtime leaves convolutions in float where exporters merge equal initializers."""
    given = case("dense", QuantScheme())
    for operator in given.graph.operators:
        if getattr(operator, "bias", None) is not None:
            operator.bias.fill_(0.25)
    count = count_layers(given.qdq())
    assert (len(count.integer), count.float) == (given.layers, ())


def test_fewer_bits_of_weights_are_stored_as_int8() -> None:
    given = case("separable", preset("w4a8"))
    stored = {tensor.name: tensor for tensor in given.qdq().graph.initializer}
    weight = onnx.numpy_helper.to_array(stored["block1.conv0.weight"])
    assert abs(weight).max() == 7


def test_other_widths_of_activations_are_refused() -> None:
    given = case("separable", preset("w8a6"))
    with pytest.raises(InputError, match="activations of 8 bits"):
        given.qdq()


def test_scales_of_another_graph_are_refused() -> None:
    given = case("residual", QuantScheme())
    given.scales.pop("block1.conv5.rounded")
    with pytest.raises(InputError, match=r"block1.conv5.rounded.*calibrate_rounded"):
        given.qdq()


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="refuses"):
        open_session(path)


def assert_every_layer_runs_in_integers(path: Path) -> None:
    network, scheme = load_model(path).network, FLAVOURS["u8s8"]
    graph = fold(network, scheme)
    noise = torch.randn(1, graph.channels, 200, generator=torch.Generator().manual_seed(0))
    scales = calibrate_rounded(graph, [(noise, torch.tensor([200]))], scheme)
    count = count_layers(export_qdq(graph, scales, scheme))
    assert count.float == ()
    assert len(count.integer) == sum("Conv" in type(o).__name__ for o in graph.operators)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_every_layer_of_our_own_checkpoints(path: Path) -> None:
    assert_every_layer_runs_in_integers(path)


@pytest.mark.parametrize("name", ["quartznet_nemo", "conformer_nemo"])
def test_every_layer_of_the_real_models(request: pytest.FixtureRequest, name: str) -> None:
    assert_every_layer_runs_in_integers(request.getfixturevalue(name))
