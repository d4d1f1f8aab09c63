"""What is known of the GPU's engines without one: refusals, their files, and TensorRT's double."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import onnx
import pytest
import torch
from checkpoints import write_checkpoint

from zqlib.benchmark.compare import files_of_case
from zqlib.benchmark.engines import Inputs, load_engine
from zqlib.benchmark.gpu import require_gpu
from zqlib.benchmark.plan import Case, parse_system
from zqlib.benchmark.prepare import case_features, write_files
from zqlib.benchmark.sources import Source
from zqlib.errors import InputError
from zqlib.export.engine import Profile
from zqlib.export.tensorrt_rules import violations, weighted_nodes

SYSTEMS = [parse_system(f"tensorrt:{precision}") for precision in ("float32", "float16", "int8")]


def test_triton_is_not_timed_without_a_gpu(
    zq: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    path = write_checkpoint(tmp_path / "tiny.nemo")
    status, out, err = zq("bench", path, "--engine", "triton:int8")
    assert status == 1 and out == "" and "needs an NVIDIA GPU" in err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InputError, match="interpreter is nothing to time"):
        require_gpu("triton")


@pytest.mark.parametrize("engine", ["torch-cuda", "torch-compile"])
def test_torch_is_not_timed_on_a_gpu_that_is_not_there(
    zq: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = write_checkpoint(tmp_path / "tiny.nemo")
    status, out, err = zq("bench", path, "--engine", f"{engine}:float16")
    assert status == 1 and out == "" and "sees no CUDA GPU" in err and err.count("\n") == 1


def test_tensorrt_is_not_timed_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", MagicMock(__version__="11.4.0.106"))
    monkeypatch.delitem(sys.modules, "zqlib.export.tensorrt", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no NVIDIA GPU"):
        require_gpu("tensorrt")
    sys.modules.pop("zqlib.export.tensorrt")


def test_every_precision_gets_its_file_and_the_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(write_checkpoint(tmp_path / "tiny.nemo"))
    model = source.load()
    write_files(model, SYSTEMS, tmp_path)
    features, lengths = case_features(model, Case(2, 0.5, 1))
    frames = features.shape[2]
    log_probs = torch.zeros(2, 3, 4)
    log_probs[:, :, 1] = 1
    build = MagicMock(return_value=(b"plan", "record"))
    runner = MagicMock()
    runner.return_value.return_value = log_probs, lengths
    double = SimpleNamespace(build_engine=build, TensorRTRunner=runner)
    monkeypatch.setitem(sys.modules, "zqlib.export.tensorrt", double)
    expected = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
    for system, file in files_of_case(SYSTEMS, tmp_path, features).items():
        assert file and not violations(onnx.load(file), quantized=system.precision == "int8")
        engine = load_engine(Inputs(system, source, file, 1, features.numpy(), lengths.numpy()))()
        given, precision, profile, _ = build.call_args.args
        assert precision == expected[system.precision]
        assert profile == Profile((2, 2, 2), (frames, frames, frames))
        assert engine.tokens(engine.run()).tolist() == [[1, 1, 1]] * 2
        kind = "integer" if system.precision == "int8" else "float"
        assert engine.layers()[kind] == sum(engine.layers().values()) == len(weighted_nodes(given))
    halves = {tensor.data_type for tensor in onnx.load(tmp_path / "float16.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in halves
