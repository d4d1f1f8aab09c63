"""`zq export`: the files that it leaves, and one sentence for every mistake."""

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from checkpoints import write_audio
from mistakes import left, one_sentence

import zqlib
from zqlib.audio import audio_features, pad_features
from zqlib.evaluation import decode_batch
from zqlib.export.card import tokens_file
from zqlib.export.engine import EngineRecord, Precision, Profile
from zqlib.export.inspection import count_layers, float_tensors
from zqlib.export.runtime import open_session
from zqlib.export.tensorrt_rules import violations
from zqlib.models import load_model
from zqlib.quantized_model import load_quantized
from zqlib.recognition import load_recogniser, transcribe

Run = Callable[..., tuple[int, str, str]]


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def heard(path: Path, audio: Path, checkpoint: Path) -> str:
    """Greedy text by an exported float or Q/DQ model, told nothing but its metadata."""
    front_end = load_model(checkpoint).front_end
    x, lengths = pad_features([audio_features(audio, front_end)], front_end.config.pad_to)
    session = open_session(path)
    logprobs, valid = session.run(
        ["logprobs", "output_length"], {"audio_signal": x.numpy(), "length": lengths.numpy()}
    )
    labels = json.loads(session.get_modelmeta().custom_metadata_map["zqlib.labels"])
    (text,) = decode_batch(torch.from_numpy(logprobs).argmax(-1), torch.from_numpy(valid), labels)
    return text


@pytest.mark.parametrize("flavour", [[], ["--flavour", "s8s8"]], ids=["default", "s8s8"])
def test_qdq(zq: Run, here: Path, prepared: Path, flavour: list[str]) -> None:
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    checkpoint = prepared / "tiny0.nemo"
    status, out, err = zq("export", checkpoint, "--to", "onnx", "-o", "new/a.onnx", *fast, *flavour)
    name = flavour[-1] if flavour else "u8s8"
    assert (status, err) == (0, "")
    assert out.startswith(f"new/a.onnx: quartznet tiny0, Q/DQ, w8a8, {name}, 0.")
    assert left(here) == ["new", "new/a.md", "new/a.onnx", "new/a.tokens.txt"]
    model = onnx.load("new/a.onnx")
    known = metadata(model)
    labels = load_model(checkpoint).labels
    assert known["vocab_size"] == str(len(labels))
    assert (known["subsampling_factor"], known["normalize_type"]) == ("2", "per_feature")
    assert known["model_type"] == "EncDecCTCModelBPE"
    assert json.loads(known["zqlib.scheme"])["unsigned_relu"] == (name == "u8s8")
    assert json.loads(known["zqlib.calibration"])["kind"] == "synthetic"
    if name == "u8s8":
        assert count_layers(model).float == ()
    else:
        assert violations(model) == []
    card = Path("new/a.md").read_text()
    row = "`audio_signal` | FLOAT | (batch, 64, frames)"
    front_end = ("every 20 ms", "64 log-mel", "16000 Hz")
    for fact in ("`a.onnx`", "a.tokens.txt", *front_end, f"id {len(labels)}", "w8a8", row):
        assert fact in card, fact
    agreement_pct = float(card.partition("calibration gives ")[2].partition(" %")[0])
    assert 50 < agreement_pct <= 100
    assert "Not Q/DQ" not in card


def test_the_card_of_a_conformer_says_what_is_not_q_dq(zq: Run, here: Path) -> None:
    checkpoint = Path(zqlib.__file__).parent / "checkpoints" / "mini-conformer.nemo"
    assert zq("export", checkpoint, "-o", "a.onnx", "--calibration", "noise", "--quiet")[0] == 0
    kept = sum(node.op_type == "ConvInteger" for node in onnx.load("a.onnx").graph.node)
    assert kept and f"**Not Q/DQ**: {kept} depthwise" in Path("a.md").read_text()


def test_the_same_file_twice(zq: Run, here: Path, prepared: Path) -> None:
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    for name in ("a", "b"):
        assert zq("export", prepared / "tiny0.nemo", "-o", f"{name}.onnx", *fast)[0] == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_float_hears_what_the_checkpoint_hears(zq: Run, here: Path, prepared: Path) -> None:
    checkpoint, audio = prepared / "tiny0.nemo", write_audio(here / "noise.wav", 1.0)
    assert zq("export", checkpoint, "--to", "onnx-float", "-o", "a.onnx")[0] == 0
    (expected,) = transcribe(load_recogniser(checkpoint), [audio])
    assert heard(Path("a.onnx"), audio, checkpoint) == expected != ""
    assert "zqlib.scheme" not in metadata(onnx.load("a.onnx"))
    assert "Calibration" not in Path("a.md").read_text()


@pytest.mark.parametrize("source", ["tiny0.zq", "tiny0.nemo"])
def test_integers(zq: Run, here: Path, prepared: Path, source: str) -> None:
    fast = ("--synthesis", prepared / "fast.json") if source.endswith(".nemo") else ()
    status, out, _ = zq(
        "export", prepared / source, "--to", "onnx-integer", "-o", "a.onnx", *fast, "--quiet"
    )
    assert status == 0 and "integers only, w8a8" in out
    model, expected = onnx.load("a.onnx"), load_quantized(prepared / "tiny0.zq")
    assert float_tensors(model) == []
    assert float(metadata(model)["zqlib.input_scale"]) == expected.input_scale
    assert repr(expected.input_scale) in Path("a.md").read_text()
    (audio,) = [write_audio(here / "noise.wav", 1.0)]
    x, lengths = pad_features([audio_features(audio, expected.front_end)])
    inputs = {"features": expected.quantize_features(x).numpy(), "length": lengths.numpy()}
    tokens, valid = open_session(Path("a.onnx")).run(["tokens", "output_length"], inputs)
    labels = json.loads(metadata(model)["zqlib.labels"])
    texts = decode_batch(torch.from_numpy(tokens), torch.from_numpy(valid), labels)
    assert texts == [*transcribe(load_recogniser(prepared / "tiny0.zq"), [audio])]


def test_tokens_are_read_back() -> None:
    lines = tokens_file((" ", "a", "\u2581the", "'")).splitlines()
    assert lines == ["\u2581 0", "a 1", "\u2581the 2", "' 3", "<blk> 4"]


def test_the_card_tells_how_to_quantize_features(zq: Run, here: Path, prepared: Path) -> None:
    assert zq("export", prepared / "tiny0.zq", "--to", "onnx-integer", "-o", "a.onnx")[0] == 0
    scale = Path("a.md").read_text().partition("round(x / ")[2].partition(")")[0]
    model = load_quantized(prepared / "tiny0.zq")
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    by_card = np.clip(np.round(x / np.float32(ast.literal_eval(scale))), -128, 127)
    assert by_card.tolist() == model.quantize_features(torch.from_numpy(x)).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny0.nemo", "--to", "tflite", "-o", "a.onnx"), "'tflite' is unknown"),
        (("tiny0.nemo", "-o", "a.zq"), "must end in .onnx"),
        (("tiny0.zq", "-o", "a.onnx"), "onnx-integer; give the .nemo"),
        (("tiny0.zq", "--to", "onnx-float", "-o", "a.onnx"), "give the .nemo"),
        (("fast.json", "-o", "a.onnx"), "neither a .nemo checkpoint nor a .zq"),
        (("absent.nemo", "-o", "a.onnx"), "absent.nemo"),
        (("absent.zq", "--to", "onnx-integer", "-o", "a.onnx"), "absent.zq"),
        (("tiny0.nemo", "--flavour", "u4", "-o", "a.onnx"), "'u4' is unknown"),
        (("tiny0.nemo", "--to", "onnx-integer", "--flavour", "u8s8", "-o", "a.onnx"), "leave it"),
        (("tiny0.nemo", "--bits", "6", "-o", "a.onnx"), "activations of 8 bits, w6a6 has 6"),
        (("tiny0.nemo", "--bits", "1", "-o", "a.onnx"), "weight_bits is 1"),
        (("tiny0.zq", "--to", "onnx-integer", "--bits", "8", "-o", "a.onnx"), "no calibration"),
        (("tiny0.nemo", "--to", "onnx-float", "--seed", "1", "-o", "a.onnx"), "no calibration"),
        (("tiny0.nemo", "--to", "tensorrt", "-o", "a.onnx"), "end in .plan or .engine"),
        (("tiny0.nemo", "--precision", "fp16", "-o", "a.onnx"), "those of tensorrt"),
        (("tiny0.nemo", "--to", "tensorrt", "--precision", "int4", "-o", "a.plan"), "'int4' is un"),
        (("tiny0.nemo", "--to", "tensorrt", "--batch-range", "8,1,1", "-o", "a.plan"), "no range"),
        (("tiny0.nemo", "--to", "tensorrt", "--flavour", "s8s8", "-o", "a.plan"), "leave it out"),
        (("tiny0.zq", "--to", "tensorrt", "-o", "a.plan"), "give the .nemo"),
        (("tiny0.nemo", "--calibration", "real", "-o", "a.onnx"), "--manifest"),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_bad_exports(
    zq: Run, here: Path, prepared: Path, arguments: tuple[str, ...], message: str
) -> None:
    model, *options = arguments
    assert message in one_sentence(*zq("export", prepared / model, *options))
    assert left(here) == []


def test_outputs_that_cannot_be(zq: Run, here: Path, prepared: Path) -> None:
    (here / "folder.onnx").mkdir()
    arguments = (prepared / "tiny0.nemo", "--to", "onnx-float", "-o", "folder.onnx")
    assert "cannot be written" in one_sentence(*zq("export", *arguments))
    assert left(here) == ["folder.onnx"]


def test_without_onnx(zq: Run, here: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("zqlib.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = one_sentence(*zq("export", prepared / "tiny0.nemo", "-o", "a.onnx"))
    assert "onnx is missing" in message and "zqlib[export]" in message


def test_without_tensorrt(
    zq: Run, here: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "zqlib.export.tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    arguments = (prepared / "tiny0.nemo", "--to", "tensorrt", "-o", "a.plan")
    message = one_sentence(*zq("export", *arguments))
    assert "TensorRT cannot be imported" in message and "zqlib[gpu]" in message
    assert left(here) == []


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_what_is_handed_to_tensorrt_and_what_stands_beside_its_engine(
    zq: Run, here: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The builder is a double that returns bytes: no engine is made here."""
    given: list[onnx.ModelProto] = []

    def build_engine(
        model: onnx.ModelProto, precision: Precision, profile: Profile, cache: Path
    ) -> tuple[bytes, EngineRecord]:
        given.append(model)
        record = EngineRecord(
            precision, "NVIDIA T4 (fake)", "7.5", "11.4.0", "12.9", 64, profile.batch,
            profile.frames, "0", "0", {"INT8": 3, "FP32": 1}, {},
        )  # fmt: skip
        return b"an engine", record

    double = SimpleNamespace(require_device=lambda: None, build_engine=build_engine)
    monkeypatch.setitem(sys.modules, "zqlib.export.tensorrt", double)
    fast = ("--synthesis", prepared / "fast.json") if precision == "int8" else ()
    status, out, err = zq(
        "export", prepared / "tiny0.nemo", "--to", "tensorrt", "-o", "a.plan", "--quiet",
        "--precision", precision, "--batch-range", "1,2,4", *fast,
    )  # fmt: skip
    assert (status, err) == (0, "")
    name = f"a.{precision}.nvidia-t4-fake.sm75.trt11.4.0"
    assert left(here) == sorted(
        f"{name}{suffix}" for suffix in (".md", ".plan", ".plan.json", ".tokens.txt")
    )
    assert out.startswith(f"{name}.plan: quartznet tiny0")
    assert Path(f"{name}.plan").read_bytes() == b"an engine"
    record = EngineRecord.beside(Path(f"{name}.plan"))
    assert (record.batch, record.frames) == ((1, 2, 4), Profile().frames)
    card = Path(f"{name}.md").read_text()
    for fact in ("TensorRT 11.4.0", "3 INT8", "(1, 2, 4)"):
        assert fact in card, fact
    assert "sherpa" not in card
    (model,) = given
    assert violations(model, quantized=precision == "int8") == []
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 2}
    expected = {"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}
    assert kinds == {expected.get(precision, onnx.TensorProto.FLOAT)}


def test_compare(zq: Run, here: Path, prepared: Path) -> None:
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    arguments = ("compare", prepared / "tiny0.nemo", prepared / "test.jsonl", *fast)
    status, out, err = zq(*arguments, "--engine", "cpu", "--engine", "onnx-qdq")
    assert (status, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.startswith("engine")
    assert [row.split()[0] for row in rows] == ["reference", "cpu", "onnx-qdq"]
    assert rows[1].split()[1:] == rows[0].split()[1:]
    assert rows[2].endswith("9 of 9")
    status, out, _ = zq(*arguments, "--engine", "cpu", "--format", "json")
    assert status == 0
    assert [row["max_difference"] for row in json.loads(out)] == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "tflite"), "'tflite' is unknown"),
        (("--engine", "tensorrt-qdq"), "TensorRT cannot be imported"),
        (("--format", "xml"), "'xml' is unknown"),
    ],
)
def test_bad_comparisons(
    zq: Run, here: Path, prepared: Path, options: tuple[str, ...], message: str
) -> None:
    fast = ("--synthesis", prepared / "fast.json", "--quiet")
    arguments = (prepared / "tiny0.nemo", prepared / "test.jsonl", *fast, *options)
    assert message in one_sentence(*zq("compare", *arguments))
