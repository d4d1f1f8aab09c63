"""What our code does around TensorRT, with a double in its place: no engine is built or run here.

Whether the calls fit the real API is checked in `test_tensorrt_stubs`.
"""

import importlib
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import onnx
import pytest
import torch
from test_engine import RECORD
from test_onnx_qdq import FLAVOURS, case
from test_tensorrt_layers import layer_11, report

from zqlib.errors import InputError
from zqlib.export.engine import Profile, record_path
from zqlib.export.onnx_float import export_float
from zqlib.export.tensorrt_rules import weighted_nodes
from zqlib.files import write_json


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """In the place of TensorRT, on a machine that seems to have a T4."""
    double = MagicMock(__version__="11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    return double


@pytest.fixture
def ours(library: MagicMock) -> Iterator[ModuleType]:
    """Our module, which has imported the double."""
    sys.modules.pop("zqlib.export.tensorrt", None)
    yield importlib.import_module("zqlib.export.tensorrt")
    sys.modules.pop("zqlib.export.tensorrt", None)


@pytest.fixture
def model() -> onnx.ModelProto:
    return case("separable", FLAVOURS["s8s8"]).qdq()


def floating() -> onnx.ModelProto:
    return export_float(case("separable", FLAVOURS["s8s8"]).graph)


def prepare(library: MagicMock, layers: str) -> MagicMock:
    """A builder that returns bytes, whose layers are those of a report."""
    builder = library.Builder.return_value
    builder.build_serialized_network.return_value = b"an engine"
    config = builder.create_builder_config.return_value
    config.get_timing_cache.return_value.serialize.return_value = b"timings"
    engine = library.Runtime.return_value.deserialize_cuda_engine.return_value
    engine.create_engine_inspector.return_value.get_engine_information.return_value = layers
    return builder


def test_build(
    library: MagicMock, ours: ModuleType, model: onnx.ModelProto, tmp_path: Path
) -> None:
    names = weighted_nodes(model)
    builder = prepare(library, report(*(layer_11(name, "INT8") for name in names)))
    plan, record = ours.build_engine(model, "int8", Profile(), tmp_path)
    assert plan == b"an engine"
    assert record.engine_sha256 == sha256(plan).hexdigest()
    assert (record.device, record.compute_capability) == ("Tesla T4", "7.5")
    assert (record.tensorrt, record.mels) == ("11.4.0.106", 8)
    assert record.layers == {"INT8": len(names)}
    (timings,) = tmp_path.iterdir()
    assert timings.name == "Tesla-T4-trt11.4.0.106.timing"
    config = builder.create_builder_config.return_value
    config.create_timing_cache.assert_called_once_with(b"")
    ours.build_engine(model, "int8", Profile(), tmp_path)
    assert config.create_timing_cache.call_args.args == (b"timings",)


def test_a_layer_that_is_not_int8_fails_the_build(
    library: MagicMock, ours: ModuleType, model: onnx.ModelProto, tmp_path: Path
) -> None:
    first, *others = weighted_nodes(model)
    layers = layer_11(first, "FP32"), *(layer_11(name, "INT8") for name in others)
    prepare(library, report(*layers))
    with pytest.raises(InputError, match=rf"^1 of {1 + len(others)} conv.*{first} \(FP32\)"):
        ours.build_engine(model, "int8", Profile(), tmp_path)
    ours.build_engine(floating(), "fp32", Profile(), tmp_path)  # there it may be


def test_a_model_that_breaks_a_rule_is_not_given_to_tensorrt(
    library: MagicMock, ours: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="would not take the model.*https://"):
        ours.build_engine(floating(), "int8", Profile(), tmp_path)
    library.Builder.assert_not_called()


def test_refusals_of_tensorrt_are_passed_on(
    library: MagicMock, ours: ModuleType, model: onnx.ModelProto, tmp_path: Path
) -> None:
    builder = prepare(library, "{}")
    parser = library.OnnxParser.return_value
    parser.parse.return_value, parser.num_errors = False, 1
    parser.get_error.return_value.desc.return_value = "no such node"
    with pytest.raises(InputError, match="refuses the model.*no such node"):
        ours.build_engine(model, "int8", Profile(), tmp_path)
    parser.parse.return_value = True
    builder.build_serialized_network.return_value = None
    with pytest.raises(InputError, match="could not build"):
        ours.build_engine(model, "int8", Profile(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_old_library_or_no_gpu_is_refused(
    library: MagicMock, ours: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.__version__ = "8.6.1"
    with pytest.raises(InputError, match="8.6.1 is too old"):
        ours.require_device()
    library.__version__ = "10.16.1.11"
    ours.require_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no NVIDIA GPU"):
        ours.require_device()


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        (b"cut", {}, "not the engine of its record"),
        (None, {}, "cannot be read"),
        (b"whole", {"tensorrt": "10.1"}, r"TensorRT 10.1, here are Tesla T4 and 11.4"),
        (b"whole", {"device": "A100"}, r"built for A100"),
    ],
)
def test_engines_of_elsewhere_are_refused(
    ours: ModuleType, tmp_path: Path, content: bytes | None, change: dict[str, str], message: str
) -> None:
    path = tmp_path / "a.plan"
    digest = {"engine_sha256": sha256(b"whole").hexdigest()}
    write_json(record_path(path), RECORD.to_json() | digest | change)
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        ours.TensorRTRunner.load(path)
