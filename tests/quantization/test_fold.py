"""The folded graph computes what the network computes."""

import pytest
import torch
from tiny import BLOCKS, N_CLASSES, N_MELS, features, network
from torch import Tensor, nn

from zqlib.models.jasper import MaskedConv
from zqlib.models.layers import BatchNorm
from zqlib.quantization.fold import fold
from zqlib.quantization.nodes import Activation, FloatConv
from zqlib.quantization.scheme import QuantScheme, ResidualSum


@pytest.mark.parametrize("topology", BLOCKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_folded_graph_equals_the_network(topology: str, seed: int) -> None:
    model = network(topology, seed)
    x, lengths = features([60, 41, 7], seed)
    logits, out_lengths = fold(model, QuantScheme()).run(x, lengths)
    expected, expected_lengths = model.double()(x.double(), lengths)
    assert torch.equal(out_lengths, expected_lengths)
    actual = logits.double().log_softmax(1).transpose(1, 2)
    for row, length in enumerate(out_lengths.tolist()):
        torch.testing.assert_close(
            actual[row, :length], expected[row, :length], rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("topology", BLOCKS)
def test_every_parameter_is_in_the_graph_once(topology: str) -> None:
    model, graph = network(topology), fold(network(topology), QuantScheme())
    convs = [o for o in graph.operators if isinstance(o, FloatConv)]
    assert len(convs) == sum(isinstance(m, nn.Conv1d) for m in model.modules())
    assert sum(o.weight.numel() for o in convs) == sum(
        m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv1d)
    )
    # a BatchNorm leaves a bias, a depthwise convolution before its pointwise has none
    assert sum(o.bias is not None for o in convs) == 1 + sum(
        isinstance(m, BatchNorm) for m in model.modules()
    )
    assert (graph.channels, graph.logits) == (N_MELS, convs[-1].output)
    assert convs[-1].weight.shape[0] == N_CLASSES + 1


def test_fold_is_the_formula_of_the_paper() -> None:
    """W' = W * gamma / sigma, b' = beta - mu * gamma / sigma, with the layer's own eps."""
    model = network("dense")
    block = model.encoder.encoder[0]
    conv, norm = block.mconv[0], block.mconv[1]
    assert isinstance(conv, MaskedConv) and isinstance(norm, BatchNorm)
    norm.eps = 0.5
    folded = fold(model, QuantScheme()).operators[0]
    assert isinstance(folded, FloatConv) and folded.bias is not None
    gain = norm.weight / (norm.running_var + 0.5).sqrt()
    torch.testing.assert_close(folded.weight, conv.conv.weight * gain[:, None, None])
    torch.testing.assert_close(folded.bias, norm.bias - norm.running_mean * gain)


def test_fold_leaves_the_network_alone() -> None:
    model = network("residual")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fold(model, QuantScheme())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_relu_only_after_the_sum_of_a_residual_block() -> None:
    activations = [
        o for o in fold(network("residual"), QuantScheme()).operators if isinstance(o, Activation)
    ]
    sums = [o for o in activations if len(o.inputs) > 1]
    assert [o.name for o in sums] == ["block1.relu", "block2.relu"]
    assert all(o.relu for o in sums)
    depthwise = [o for o in activations if not o.relu]
    assert [o.name for o in depthwise] == ["block0.conv0.out"] + [
        f"block1.conv{i}.out" for i in (0, 2, 4)
    ]


def test_dense_residual_sums_every_dense_block_so_far() -> None:
    operators = fold(network("dense residual"), QuantScheme()).operators
    terms = {o.name: len(o.inputs) for o in operators if isinstance(o, Activation)}
    blocks = [terms[f"block{i}.relu"] for i in range(5)]
    assert blocks == [1, 2, 3, 4, 1]


@pytest.mark.parametrize("residual_sum", ["partial", "shared"])
def test_partial_sums_of_dense_residuals(residual_sum: ResidualSum) -> None:
    model, (x, lengths) = network("dense residual"), features([40, 23])
    graph = fold(model, QuantScheme(residual_sum=residual_sum))
    sums = [o for o in graph.operators if isinstance(o, Activation) and len(o.inputs) > 1]
    assert all(len(o.inputs) == 2 for o in sums)
    assert [o.name for o in sums] == [
        "block1.relu", "block2.sum0", "block2.relu", "block3.sum0", "block3.sum1", "block3.relu",
    ]  # fmt: skip
    assert [o.relu for o in sums] == [True, False, True, False, False, True]
    groups = [None, *["block2"] * 2, *["block3"] * 3] if residual_sum == "shared" else [None] * 6
    assert [o.group for o in sums] == groups
    whole, _ = fold(model, QuantScheme()).run(x, lengths)
    torch.testing.assert_close(graph.run(x, lengths)[0], whole)


def test_signed_sums_come_before_the_relu_and_before_the_decoder() -> None:
    model, (x, lengths) = network("dense residual"), features([40, 23])
    graph = fold(model, QuantScheme(signed_sums=True))
    activations = [o for o in graph.operators if isinstance(o, Activation)]
    sums = [o for o in activations if len(o.inputs) > 1]
    assert [(o.name, o.relu) for o in sums] == [(f"block{i}.sum", False) for i in (1, 2, 3)]
    after = {o.group: o for o in activations if o.relu and o.group}
    assert [after[f"block{i}"].inputs for i in (1, 2, 3)] == [(o.name,) for o in sums]
    assert (activations[-1].name, activations[-1].relu) == ("decoder.input", False)
    plain, _ = fold(model, QuantScheme()).run(x, lengths)
    torch.testing.assert_close(graph.run(x, lengths)[0], plain)


def test_observer_sees_valid_frames_of_features_and_activations() -> None:
    graph = fold(network("residual"), QuantScheme())
    x, lengths = features([20, 9])
    x[1, :, 9:] = 1e6  # garbage beyond the length
    seen: dict[str, Tensor] = {}
    graph.run(x, lengths, lambda name, value: seen.update({name: value}))
    names = [o.output for o in graph.operators if isinstance(o, Activation)]
    assert sorted(seen) == sorted(["features", *names])
    assert torch.equal(seen["features"], torch.cat([x[0], x[1, :, :9]], dim=1))
    assert seen["block3.relu"].shape == (10, 10 + 5)
    assert all(value.abs().max() < 1e5 for value in seen.values())
