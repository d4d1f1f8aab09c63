"""Static calibration: which tensors get which scale."""

import pytest
import torch
from tiny import BLOCKS, N_MELS, features, network
from torch import Tensor

from zqlib.errors import InputError
from zqlib.quantization.calibrate import activation_levels, calibrate
from zqlib.quantization.fold import fold
from zqlib.quantization.nodes import Activation
from zqlib.quantization.scheme import QuantScheme, RangeMethod, ResidualSum


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("unsigned", [True, False])
def test_levels_follow_the_scheme(bits: int, unsigned: bool) -> None:
    graph = fold(network("separable"), QuantScheme())
    levels = activation_levels(graph, QuantScheme(8, bits, unsigned_relu=unsigned))
    half = 2 ** (bits - 1)
    assert levels["features"] == (-half, half - 1)
    for operator in graph.operators:
        if isinstance(operator, Activation):
            after_relu = (0, 2 * half - 1) if unsigned else (0, half - 1)
            expected = after_relu if operator.relu else (-half, half - 1)
            assert levels[operator.output] == expected


@pytest.mark.parametrize("topology", BLOCKS)
def test_minmax_puts_the_largest_value_at_the_end(topology: str) -> None:
    graph = fold(network(topology), QuantScheme())
    batches = [features([30, 18], 1), features([25], 2)]
    scheme = QuantScheme()
    largest: dict[str, float] = {}

    def observe(name: str, values: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(values.abs().max()))

    for batch in batches:
        graph.run(*batch, observe)
    levels = activation_levels(graph, scheme)
    scales = calibrate(graph, batches, scheme)
    assert scales.keys() == largest.keys() == levels.keys()
    for name, scale in scales.items():
        assert scale * levels[name][1] == pytest.approx(largest[name], rel=1e-6)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_padding_order_and_batching_do_not_matter(method: RangeMethod) -> None:
    graph = fold(network("residual"), QuantScheme())
    scheme = QuantScheme(range_method=method, percentile=99.0)
    lengths = [31, 12, 20]
    x, _ = features(lengths)
    x = torch.cat([x, torch.zeros(3, N_MELS, 5)], dim=2)
    for row, length in enumerate(lengths):
        x[row, :, length:] = 100.0
    together = calibrate(graph, [(x, torch.tensor(lengths))], scheme)
    alone = [(x[i : i + 1, :, :n], torch.tensor([n])) for i, n in enumerate(lengths)]
    apart = calibrate(graph, alone[::-1], scheme)
    for name, scale in together.items():  # convolutions of other shapes sum in another order
        assert apart[name] == pytest.approx(scale, rel=1e-3), name


def test_calibration_repeats_itself_exactly() -> None:
    graph, scheme = fold(network("residual"), QuantScheme()), QuantScheme(range_method="mse")
    batches = [features([30, 20])]
    assert calibrate(graph, batches, scheme) == calibrate(graph, batches, scheme)


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_clipping_methods_do_not_widen_the_range(method: RangeMethod) -> None:
    graph, batches = fold(network("dense"), QuantScheme()), [features([60, 50])]
    widest = calibrate(graph, batches, QuantScheme(4, 4))
    scales = calibrate(graph, batches, QuantScheme(4, 4, range_method=method, percentile=99.0))
    assert all(0 < scales[name] <= widest[name] for name in widest)
    assert any(scales[name] < 0.95 * widest[name] for name in widest)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_calibration_on_zeros_is_refused(method: RangeMethod) -> None:
    graph = fold(network("dense"), QuantScheme())
    zeros = torch.zeros(1, N_MELS, 20), torch.tensor([20])
    with pytest.raises(InputError, match="zero for all calibration data"):
        calibrate(graph, [zeros], QuantScheme(range_method=method))


def test_calibration_on_nothing_is_refused() -> None:
    with pytest.raises(InputError):
        calibrate(fold(network("dense"), QuantScheme()), [], QuantScheme())


def test_calibration_on_nan_is_refused() -> None:
    x, lengths = features([20])
    x[0, 3, 5] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        calibrate(
            fold(network("dense"), QuantScheme()), [features([20]), (x, lengths)], QuantScheme()
        )


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_a_signed_sum_leaves_its_relu_half_of_the_levels(method: RangeMethod) -> None:
    scheme = QuantScheme(range_method=method, signed_sums=True)
    graph = fold(network("residual"), scheme)
    scales = calibrate(graph, [features([60, 50])], scheme)
    levels = activation_levels(graph, scheme)
    for block in ("block1", "block2"):
        assert scales[f"{block}.relu"] == scales[f"{block}.sum"]
        assert levels[f"{block}.sum"] == (-128, 127) and levels[f"{block}.relu"] == (0, 127)
    assert levels["block0.relu"] == (0, 255) and levels["decoder.input"] == (-128, 127)


def test_a_moving_average_depends_on_the_order_of_the_batches() -> None:
    small, large = features([30], 1), features([30], 2)
    large = (4 * large[0], large[1])
    scheme = QuantScheme(range_method="moving-average")
    graph = fold(network("residual"), scheme)
    scales = {
        name: calibrate(graph, batches, scheme)["features"]
        for name, batches in {"small": [small], "large": [large], "both": [small, large]}.items()
    }
    assert scales["both"] == pytest.approx(0.95 * scales["small"] + 0.05 * scales["large"], rel=0.1)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_partial_sums_share_a_range_or_have_their_own(method: RangeMethod) -> None:
    data = [features([60, 50])]

    def ranges(residual_sum: ResidualSum) -> list[float]:
        scheme = QuantScheme(range_method=method, residual_sum=residual_sum)
        graph = fold(network("dense residual"), scheme)
        scales, levels = calibrate(graph, data, scheme), activation_levels(graph, scheme)
        names = ("block3.sum0", "block3.sum1", "block3.relu")
        return [scales[name] * levels[name][1] for name in names]

    own, shared = ranges("partial"), ranges("shared")
    assert len({*own}) == 3
    if method == "mse":  # the best range of as many values depends on the number of levels
        assert shared[0] == shared[1]
    else:
        assert shared == pytest.approx([shared[0]] * 3)
    if method == "minmax":
        assert shared[0] == pytest.approx(max(own))
