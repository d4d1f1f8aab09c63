"""Whole programs on the kernels for NVIDIA GPUs, what they compile to, and who is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_conformer
import torch
from test_triton_operators import assert_same
from tiny import BLOCKS, N_MELS, integers, lowered, single_conv

from zqlib.errors import InputError
from zqlib.integer import reference
from zqlib.integer.backends.triton import Executor, executor
from zqlib.quantization.scheme import QuantScheme, preset

HERE = Path(__file__).parent


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("topology", BLOCKS)
def test_tiny_networks(topology: str, scheme: str) -> None:
    program = lowered(topology, preset(scheme))[0]
    kind = program.tensors[program.input]
    x = integers((3, N_MELS, 45), kind.low, kind.high, kind.dtype, 0)
    assert_same(program, x, torch.tensor([40, 1, 23]))


def test_tiny_conformer() -> None:
    network, features = tiny_conformer.network(), tiny_conformer.features()
    program, x = tiny_conformer.lowered(network, features, QuantScheme())
    assert_same(program, x, tiny_conformer.LENGTHS)


def test_shapes_may_come_in_any_order() -> None:
    """Each shape has a plan of its own, which is used again."""
    program = lowered("separable")[0]
    engine = Executor(program)
    kept = []
    for batch, frames, seed in ((1, 20, 0), (2, 31, 1), (1, 20, 2)):
        x = integers((batch, N_MELS, frames), -128, 127, torch.int8, seed)
        lengths = torch.full((batch,), frames - seed)
        kept.append((reference.run(program, x, lengths), engine.run(x, lengths)))
    assert not torch.equal(kept[0][1].logits, kept[2][1].logits)
    for expected, actual in kept:  # a later run left the earlier results alone
        assert torch.equal(actual.logits.cpu(), expected.logits)
        assert torch.equal(actual.tokens.cpu(), expected.tokens)
        assert torch.equal(actual.lengths, expected.lengths)


def test_bad_batches_are_refused() -> None:
    engine = Executor(single_conv(torch.ones(2, 4, 5, dtype=torch.int8)))
    x = torch.zeros(2, 4, 9, dtype=torch.int8)
    with pytest.raises(InputError, match="too short for layer conv"):
        engine.run(x, torch.tensor([9, 4]))
    with pytest.raises(InputError, match="reads torch.int8"):
        engine.run(x.int(), torch.tensor([9, 9]))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    program = lowered("dense")[0]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs an NVIDIA GPU .* use the engine cpu"):
        Executor(program)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(InputError, match=r"capability 8\.0"):
        Executor(program)


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"not installed; install it with pip install 'zqlib"):
        Executor(lowered("dense")[0])


def test_kernels_compile_to_integer_instructions(tmp_path: Path) -> None:
    """For an A100 that is not there: products on the tensor cores, and no float anywhere."""
    tests = Path(reference.__file__).parents[2], HERE.parents[2]
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin",
                   "PYTHONPATH": ":".join([*map(str, tests), *sys.path])}  # fmt: skip
    run = subprocess.run(
        [sys.executable, HERE / "compile_kernels.py", "80"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    texts = json.loads(run.stdout)
    for name in ("convolve", "scores", "attend"):
        assert all(re.search(r"mma\S*\.s32\.s8\.s8", ptx) for ptx in texts[name])
    assert len(texts) == 9  # every kernel there is
    for name, versions in texts.items():
        assert not any(re.search(r"\.b?f(16|32|64)\b", ptx) for ptx in versions), name
