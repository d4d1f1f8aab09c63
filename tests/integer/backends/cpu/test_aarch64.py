"""The kernels for AArch64 against the reference, by the tests of the others, under an emulator.

They have never run on a real processor.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import same
import test_convolutions as convolutions
import test_executor as executors
import test_operators as operators
from emulated import COMPILER, MISSING, EmulatedExecutor, Emulator, cross_compiled
from test_convolutions import SIGNED, UNSIGNED
from test_library import FLOATING_AARCH64, compiled, floating_point

from zqlib.integer.backends.cpu import executor
from zqlib.quantization.scheme import preset

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} cannot be found")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"), "max")
    yield emulator
    emulator.close()


@pytest.mark.parametrize(
    "test",
    [
        convolutions.test_conv1d,
        *(
            partial(convolutions.test_conv1d_at_the_extremes, extreme, kind, depthwise, taps)
            for extreme, kind, depthwise in [
                (127, SIGNED, False),
                (-127, SIGNED, True),
                (-127, UNSIGNED, False),
                (127, UNSIGNED, True),
            ]
            for taps in (1, 5)
        ),
        partial(convolutions.test_accumulator_at_the_ends_of_int32, False),
        partial(convolutions.test_accumulator_at_the_ends_of_int32, True),
        convolutions.test_conv2d,
        convolutions.test_images_between_convolutions,
        convolutions.test_requantization_of_a_convolution_and_a_residual,
        convolutions.test_function_of_a_convolution,
        operators.test_requantize,
        operators.test_layer_norm,
        operators.test_functions,
        operators.test_attention,
        operators.test_positions,
        executors.test_tiny_networks,
        partial(executors.test_tiny_conformer, preset("w8a8")),
        executors.test_mini_model,
    ],
    ids=lambda test: getattr(test, "func", test).__name__,
)
def test_same_under_an_emulator(
    test: Callable[[], None], emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "library", lambda: emulator)
    monkeypatch.setattr(EmulatedExecutor, "emulator", emulator, raising=False)
    monkeypatch.setattr(same, "Executor", EmulatedExecutor)
    monkeypatch.setattr(same, "AVAILABLE", ["neon_dot", "portable"])
    test()


def test_a_processor_without_the_dot_product_runs_the_portable_kernels(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path, "cortex-a72")
    assert (emulator.lanes("neon_dot"), emulator.lanes("portable")) == (0, 4)
    emulator.close()


def test_no_instruction_computes_in_floating_point(tmp_path: Path) -> None:
    find = partial(floating_point, objdump="aarch64-linux-gnu-objdump", floating=FLOATING_AARCH64)
    source = """double f(double x, long n, float *y, int *z) {
        for (int i = 0; i < n; ++i) y[i] = 3 * y[i], z[i] = z[i] > 3 ? z[i] : -z[i];
        return x < n ? x : 1; }"""
    found = {line.split("\t")[1] for line in find(compiled(source, tmp_path, compiler=COMPILER))}
    assert {"fmul", "scvtf"} <= found
    assert list(find(cross_compiled())) == []
