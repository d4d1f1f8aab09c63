"""The integer program approximates the float graph, and better with every bit."""

from pathlib import Path

import pytest
import torch
from tiny import BLOCKS, features, network
from torch import Tensor
from torch.nn import functional

from zqlib.audio import load_audio, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import LoweringError
from zqlib.integer.program import ACCUMULATOR, Conv1d, Requantize
from zqlib.integer.reference import ProgramOutput, run
from zqlib.models import load_model
from zqlib.quantization.calibrate import activation_levels, calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import lower, quantize_weight
from zqlib.quantization.nodes import Activation, FloatConv
from zqlib.quantization.scheme import QuantScheme


def quantized_run(
    graph: FloatGraph, scheme: QuantScheme, x: Tensor, lengths: Tensor, scales: dict[str, float]
) -> tuple[ProgramOutput, Tensor]:
    """The program's output, and its logits as real numbers."""
    program = lower(graph, scales, scheme)
    kind = program.tensors[program.input]
    quantized = torch.round(x / scales[graph.input]).clamp(kind.low, kind.high).to(kind.dtype)
    output = run(program, quantized, lengths)
    decoder = graph.operators[-1]
    assert isinstance(decoder, FloatConv)
    input_scale = scales[decoder.input]
    _, _, weight_scale = quantize_weight(decoder, input_scale, scheme)
    return output, output.logits.double() * input_scale * float(weight_scale.max())


def relative_error(graph: FloatGraph, scheme: QuantScheme) -> float:
    x, lengths = features([70, 50], seed=5)
    scales = calibrate(graph, [(x, lengths)], scheme)
    output, logits = quantized_run(graph, scheme, x, lengths, scales)
    expected, _ = graph.run(x, lengths)
    valid = torch.arange(logits.shape[2]) < output.lengths[:, None]
    difference = (logits - expected).transpose(1, 2)[valid]
    reference = expected.transpose(1, 2)[valid]
    return float(difference.norm() / (reference - reference.mean(0)).norm())


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("topology", BLOCKS)
def test_error_is_small_at_8_bits_and_grows_with_every_bit_less(
    topology: str, unsigned: bool
) -> None:
    graph = fold(network(topology), QuantScheme())
    errors = {
        bits: relative_error(graph, QuantScheme(bits, bits, unsigned_relu=unsigned))
        for bits in range(8, 1, -1)
    }
    assert errors[8] < 0.1  # of the logits' deviation: narrow random layers do not average it out
    assert errors[8] < errors[7] < errors[6] < errors[5] < errors[4] < min(errors[3], errors[2])


def simulated(
    graph: FloatGraph, scheme: QuantScheme, x: Tensor, lengths: Tensor, scales: dict[str, float]
) -> Tensor:
    """Logits of the graph with every tensor rounded to its grid, in float64."""
    levels = activation_levels(graph, scheme)
    low, high = levels[graph.input]
    values = {graph.input: torch.round(x.double() / scales[graph.input]).clamp(low, high)}
    valid = {graph.input: lengths}
    values[graph.input] *= scales[graph.input]
    for operator in graph.operators:
        if isinstance(operator, FloatConv):
            step = scales[operator.input]
            weight, bias, scale = quantize_weight(operator, step, scheme)
            source = values[operator.input]
            mask = torch.arange(source.shape[2]) < valid[operator.input][:, None]
            values[operator.output] = functional.conv1d(
                source * mask[:, None],
                weight.double() * scale[:, None, None],
                None if bias is None else bias.double() * step * scale,
                operator.stride, operator.padding, operator.dilation, operator.groups,
            )  # fmt: skip
            valid[operator.output] = (valid[operator.input] - 1) // operator.stride + 1
        else:
            low, high = levels[operator.output]
            step = scales[operator.output]
            terms = [torch.floor(values[name] / step + 0.5) for name in operator.inputs]
            values[operator.output] = torch.stack(terms).sum(0).clamp(low, high) * step
            valid[operator.output] = valid[operator.inputs[0]]
    return values[graph.logits]


@pytest.mark.parametrize("topology", BLOCKS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_what_rounding_in_float_gives(topology: str, bits: int) -> None:
    graph, scheme = fold(network(topology), QuantScheme()), QuantScheme(bits, bits)
    x, lengths = features([40, 23])
    scales = calibrate(graph, [(x, lengths)], scheme)
    output, logits = quantized_run(graph, scheme, x, lengths, scales)
    expected = simulated(graph, scheme, x, lengths, scales)
    step = float(logits.abs().amax() / output.logits.abs().amax())
    valid = torch.arange(logits.shape[2]) < output.lengths[:, None]
    assert ((logits - expected).abs() <= 0.51 * step).transpose(1, 2)[valid].all()


@pytest.mark.parametrize("topology", BLOCKS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_use_both_ends_and_activations_their_type(topology: str, bits: int) -> None:
    graph = fold(network(topology), QuantScheme())
    scheme = QuantScheme(bits, bits)
    program = lower(graph, calibrate(graph, [features([40])], scheme), scheme)
    limit = 2 ** (bits - 1) - 1
    for operator, source in zip(program.operators, graph.operators, strict=False):
        assert operator.name == source.name
        if isinstance(operator, Conv1d) and isinstance(source, FloatConv):
            rows = operator.weight.flatten(1)
            assert torch.equal(rows.abs().amax(1).long(), torch.full((len(rows),), limit))
            assert (operator.weight_bits, int(rows.min()), int(rows.max())) == (bits, -limit, limit)
            # the largest weight of a channel sits at the end, with its sign
            largest = source.weight.flatten(1).abs().argmax(1, keepdim=True)
            signs = source.weight.flatten(1).gather(1, largest).sign()
            assert torch.equal(rows.gather(1, largest), (signs * limit).to(torch.int8))
        elif isinstance(operator, Requantize) and isinstance(source, Activation):
            kind = program.tensors[operator.output]
            if source.relu:
                assert (kind.low, kind.high) == (0, 2**bits - 1)
                assert kind.dtype == (torch.uint8 if bits == 8 else torch.int8)
            else:
                assert (kind.low, kind.high) == (-(limit + 1), limit)
                assert kind.dtype == torch.int8


def single(weight: Tensor, bias: Tensor | None = None) -> FloatConv:
    return FloatConv("conv", "features", "logits", weight, bias)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_upper_end_can_be_cut_off(bits: int) -> None:
    weight = torch.tensor([[[1.0]], [[-1.0]]]).repeat(1, 2, 1)
    limit = 2 ** (bits - 1) - 1
    for both_ends, high in ((True, limit), (False, limit - 1)):
        quantized, _, scale = quantize_weight(single(weight), 1.0, QuantScheme(bits, 8, both_ends))
        assert quantized.flatten(1).tolist() == [[high, high], [-limit, -limit]]
        assert scale.tolist() == [1 / limit] * 2


@pytest.mark.parametrize("topology", ["residual", "dense residual"])
def test_signed_sums_cost_precision(topology: str) -> None:
    errors = [
        relative_error(fold(network(topology), scheme), scheme)
        for scheme in (QuantScheme(), QuantScheme(signed_sums=True))
    ]
    assert errors[0] < errors[1] < 3 * errors[0]


def test_signed_option_keeps_every_activation_int8() -> None:
    graph, scheme = fold(network("residual"), QuantScheme()), QuantScheme(unsigned_relu=False)
    program = lower(graph, calibrate(graph, [features([40])], scheme), scheme)
    for operator in graph.operators:
        if isinstance(operator, Activation):
            kind = program.tensors[operator.output]
            assert kind.dtype == torch.int8
            assert (kind.low, kind.high) == (0 if operator.relu else -128, 127)


def test_lowering_is_deterministic() -> None:
    graph, scheme = fold(network("residual"), QuantScheme()), QuantScheme()
    scales = calibrate(graph, [features([40])], scheme)
    first, second = lower(graph, scales, scheme), lower(graph, scales, scheme)
    for a, b in zip(first.operators, second.operators, strict=True):
        if isinstance(a, Conv1d) and isinstance(b, Conv1d):
            assert torch.equal(a.weight, b.weight)


def test_quantized_weight_and_bias_are_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 3, generator=generator)
    bias = torch.randn(6, generator=generator)
    weight_q, bias_q, scale = quantize_weight(single(weight, bias), 0.02, QuantScheme())
    assert bias_q is not None
    assert (weight_q.dtype, bias_q.dtype, scale.dtype) == (torch.int8, torch.int32, torch.float64)
    error = weight_q.double() * scale[:, None, None] - weight.double()
    assert (error.abs() <= 0.5000001 * scale[:, None, None]).all()
    assert (
        (bias_q.double() * 0.02 * scale - bias.double()).abs() <= 0.5000001 * 0.02 * scale
    ).all()


def conv_then_relu(weight: Tensor, bias: Tensor | None) -> FloatGraph:
    """features -> conv -> ReLU -> a decoder that passes its input on."""
    channels = weight.shape[0]
    return FloatGraph(
        (
            FloatConv("conv", "features", "acc", weight, bias),
            Activation("relu", ("acc",), relu=True),
            FloatConv("decoder", "relu", "logits", torch.eye(channels)[:, :, None], None),
        ),
        "features",
        weight.shape[1],
        "logits",
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-30, 1e-12, 1e-9])
@pytest.mark.parametrize("dead_bias", [3.0, -3.0, 0.0, 1e-9])
def test_dead_channel_gives_its_bias_and_no_overflow(
    tiny: float, dead_bias: float, bits: int
) -> None:
    x, lengths = features([50])
    weight = torch.randn(4, x.shape[1], 1, generator=torch.Generator().manual_seed(1))
    weight[2] *= tiny
    graph = conv_then_relu(weight, torch.tensor([0.1, -0.2, dead_bias, 0.3]))
    scheme = QuantScheme(bits, 8)
    scales = calibrate(graph, [(x, lengths)], scheme)
    _, logits = quantized_run(graph, scheme, x, lengths, scales)
    assert torch.allclose(
        logits[:, 2], torch.tensor(max(dead_bias, 0.0)).double(), atol=0.51 * scales["relu"]
    )


def test_dead_channel_without_bias_gives_zero() -> None:
    x, lengths = features([50])
    weight = torch.randn(4, x.shape[1], 1, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    graph = conv_then_relu(weight, None)
    scales = calibrate(graph, [(x, lengths)], QuantScheme())
    output, _ = quantized_run(graph, QuantScheme(), x, lengths, scales)
    assert not output.logits[:, 2].any()


@pytest.mark.parametrize("bias", [0.0, -8.0])
def test_class_that_never_occurs_costs_the_others_no_precision(bias: float) -> None:
    """A decoder row of zeros must not set the scale on which the classes are compared."""
    model = network("dense")
    decoder = model.decoder.decoder_layers[0]
    without = relative_error(fold(model, QuantScheme()), QuantScheme())
    decoder.weight[2] = 0
    assert decoder.bias is not None
    decoder.bias[2] = bias
    assert relative_error(fold(model, QuantScheme()), QuantScheme()) < 1.2 * without


def test_layer_that_could_overflow_is_refused_by_name() -> None:
    channels = 2**31 // (127 * 128) + 1
    graph = conv_then_relu(torch.ones(1, channels, 1), None)
    with pytest.raises(LoweringError, match="layer conv could reach"):
        lower(graph, {"features": 1.0, "relu": 1e6}, QuantScheme())


def test_output_far_finer_than_its_accumulator_is_refused() -> None:
    graph = conv_then_relu(torch.ones(1, 2, 1), None)
    with pytest.raises(LoweringError, match="too large"):
        lower(graph, {"features": 1.0, "relu": 1e-12}, QuantScheme())


def test_logits_are_compared_on_one_scale() -> None:
    """Classes whose weights differ 1000-fold: the raw accumulators would choose wrongly."""
    weight = torch.tensor([[1.0], [0.001]])[:, :, None]
    decoder = FloatConv("decoder", "features", "logits", weight, torch.tensor([0.0, 0.05]))
    graph = FloatGraph((decoder,), "features", 1, "logits")
    x = torch.tensor([[[1.0, 0.2, 0.0, -1.0]]])
    scales = calibrate(graph, [(x, torch.tensor([4]))], QuantScheme())
    output, logits = quantized_run(graph, QuantScheme(), x, torch.tensor([4]), scales)
    assert output.tokens.tolist() == [[0, 0, 1, 1]]
    program = lower(graph, scales, QuantScheme())
    assert program.tensors[program.logits] == ACCUMULATOR(2)
    assert torch.allclose(logits, graph.run(x, torch.tensor([4]))[0].double(), atol=0.01)


def test_real_quartznet(quartznet_nemo: Path, assets: Path) -> None:
    """Calibrated on one real utterance: agrees with float, and padding changes nothing."""
    model = load_model(quartznet_nemo)
    graph = fold(model.network, QuantScheme())
    manifest = read_manifest(assets / "speech" / "librispeech" / "test-clean.jsonl")
    shortest = sorted(manifest, key=lambda u: u.duration_s)[:3]
    calibration, *tested = [model.front_end(load_audio(u.audio_path)) for u in shortest]
    scheme = QuantScheme()
    scales = calibrate(graph, [pad_features([calibration])], scheme)
    program = lower(graph, scales, scheme)

    x, lengths = pad_features(tested)
    quantized = torch.round(x / scales[graph.input]).clamp(-128, 127).to(torch.int8)
    batch = run(program, quantized, lengths)
    expected, _ = graph.run(x, lengths)
    agreeing = total = 0
    for row, length in enumerate(lengths.tolist()):
        alone = run(program, quantized[row : row + 1, :, :length], lengths[row : row + 1])
        valid = int(alone.lengths)
        assert torch.equal(batch.tokens[row, :valid], alone.tokens[0])
        assert torch.equal(batch.logits[row, :, :valid], alone.logits[0])
        agreeing += int((alone.tokens[0] == expected[row, :, :valid].argmax(0)).sum())
        total += valid
    assert agreeing >= 0.9 * total
