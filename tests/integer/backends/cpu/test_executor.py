"""Whole programs on the kernels: the tiny networks, the mini model, and the real ones."""

import weakref
from functools import cache
from pathlib import Path

import pytest
import tiny_conformer
import torch
from hypothesis import given
from hypothesis import strategies as st
from same import AVAILABLE, assert_same
from tiny import BLOCKS, N_MELS, integers, lowered, reproducible
from tiny import single_conv as single_conv_program

import zqlib
from zqlib.calibration_data import calibration_batches, synthesis_config
from zqlib.errors import InputError
from zqlib.integer import reference
from zqlib.integer.backends import cpu
from zqlib.integer.program import Program, TensorType
from zqlib.models import load_model
from zqlib.quantization.scheme import QuantScheme, preset, usual_scheme
from zqlib.quantized_model import quantize

MINI = Path(zqlib.__file__).parent / "checkpoints" / "mini-quartznet.nemo"
SCHEMES = (*map(preset, ("w8a8", "w6a6", "w4a8")), QuantScheme(signed_sums=True))


@cache
def tiny_program(topology: str, scheme: QuantScheme = SCHEMES[0]) -> Program:
    return lowered(topology, scheme)[0]


@reproducible
@given(
    topology=st.sampled_from(sorted(BLOCKS)),
    scheme=st.sampled_from(SCHEMES),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    beyond=st.integers(0, 9),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_tiny_networks(
    topology: str, scheme: QuantScheme, lengths: list[int], beyond: int, threads: int, seed: int
) -> None:
    program = tiny_program(topology, scheme)
    kind = program.tensors[program.input]
    shape = (len(lengths), N_MELS, max(lengths) + beyond)
    assert_same(
        program, integers(shape, kind.low, kind.high, kind.dtype, seed), torch.tensor(lengths),
        threads,
    )  # fmt: skip


@pytest.mark.parametrize(
    "scheme",
    [
        *SCHEMES,
        QuantScheme(unsigned_relu=False, offset_swish=False),
        QuantScheme(stream_bits=8, gate_bits=8),
        QuantScheme(stream_bits=12, gate_bits=10),
    ],
    ids=str,
)
def test_tiny_conformer(scheme: QuantScheme) -> None:
    network, features = tiny_conformer.network(), tiny_conformer.features()
    program, x = tiny_conformer.lowered(network, features, scheme)
    for threads in (1, 2):
        assert_same(program, x, tiny_conformer.LENGTHS, threads)
    assert_same(program, x[:1, :, :50].contiguous(), torch.tensor([50]))


def assert_checkpoint_is_same(path: Path, frames: list[int]) -> None:
    model = load_model(path)
    batches, description = calibration_batches(model, "noise", synthesis_config("reduced"), None)
    scheme = usual_scheme("w8a8", model.family)
    program = quantize(model, batches, scheme, description).program
    kind = program.tensors[program.input]
    x = integers((len(frames), kind.channels, max(frames) + 3), -50, 50, kind.dtype, 1)
    assert_same(program, x, torch.tensor(frames), threads=2)


def test_mini_model() -> None:
    assert_checkpoint_is_same(MINI, [200, 131])


def test_real_quartznet(quartznet_nemo: Path) -> None:
    assert_checkpoint_is_same(quartznet_nemo, [150, 71])


def test_real_conformer(conformer_nemo: Path) -> None:
    assert_checkpoint_is_same(conformer_nemo, [150, 71])


def test_shapes_may_come_in_any_order() -> None:
    """Each shape has a plan of its own in one arena, which grows."""
    program = tiny_program("residual")
    executor = cpu.Executor(program, threads=2)
    for batch, frames in ((1, 20), (3, 90), (1, 20), (2, 7), (3, 90)):
        x = integers((batch, N_MELS, frames), -128, 127, torch.int8, frames)
        lengths = torch.full((batch,), frames)
        lengths[-1] = max(1, frames // 2)
        expected, actual = reference.run(program, x, lengths), executor.run(x, lengths)
        assert torch.equal(actual.logits, expected.logits)
        assert torch.equal(actual.tokens, expected.tokens)


def test_weights_are_not_kept() -> None:
    weight = integers((3, 4, 3), -127, 127, torch.int8, 0)
    program, kept = single_conv_program(weight), weakref.ref(weight)
    executor = cpu.Executor(program)
    del weight, program
    assert kept() is None
    assert executor.run(torch.ones(1, 4, 9, dtype=torch.int8), torch.tensor([9])).logits.any()


def test_results_stay_when_the_arena_is_used_again() -> None:
    program = tiny_program("dense")
    inputs = [integers((1, N_MELS, 30), -128, 127, torch.int8, seed) for seed in (0, 1)]
    lengths = torch.tensor([30])
    first = cpu.run(program, inputs[0], lengths)
    kept = first.logits.clone(), first.tokens.clone(), first.lengths.clone()
    second = cpu.run(program, inputs[1], lengths)
    assert not torch.equal(first.logits, second.logits)
    assert all(map(torch.equal, kept, (first.logits, first.tokens, first.lengths)))


@pytest.mark.parametrize(
    "kind",
    [
        TensorType(4, torch.int8, -128, 127),
        TensorType(4, torch.int8, -8, 7),
        TensorType(4, torch.uint8, 0, 255),
    ],
)
def test_input_is_left_alone(kind: TensorType) -> None:
    program = single_conv_program(integers((3, 4, 3), -127, 127, torch.int8, 0), kind=kind)
    x = integers((2, 4, 9), kind.low, kind.high, kind.dtype, 1)
    before = x.clone()
    assert_same(program, x, torch.tensor([9, 5]))
    assert torch.equal(x, before)


def test_bad_batches_are_refused() -> None:
    program = single_conv_program(torch.ones(2, 4, 5, dtype=torch.int8))
    x = torch.zeros(2, 4, 9, dtype=torch.int8)
    with pytest.raises(InputError, match="too short for layer conv"):
        cpu.run(program, x, torch.tensor([9, 4]))
    with pytest.raises(InputError, match="reads torch.int8"):
        cpu.run(program, x.int(), torch.tensor([9, 9]))
    with pytest.raises(InputError, match="between 1 and"):
        cpu.run(program, x, torch.tensor([9, 10]))


@pytest.mark.parametrize("threads", [0, -1, 1000])
def test_impossible_numbers_of_threads_are_refused(threads: int) -> None:
    with pytest.raises(InputError, match="give 1 to 256"):
        cpu.Executor(tiny_program("dense"), threads)


def test_unknown_instruction_sets_are_refused() -> None:
    with pytest.raises(InputError, match=f"does not run 'mmx'; use {AVAILABLE[0]}"):
        cpu.Executor(tiny_program("dense"), 1, "mmx")
