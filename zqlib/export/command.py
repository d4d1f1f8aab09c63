"""What `zq export` does."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import onnx

from zqlib.cli_options import Calibrated
from zqlib.errors import InputError
from zqlib.export.card import Description, model_card, subsampling_factor, tokens_file
from zqlib.export.engine import Precision, Profile, parse_range, record_path
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_half import to_float16
from zqlib.export.onnx_integer import export_integer
from zqlib.export.onnx_qdq import export_qdq
from zqlib.files import atomic_output, user_cache
from zqlib.models import load_model
from zqlib.quantization.fold import fold
from zqlib.quantization.lower import lower
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import (
    QuantizedModel,
    frame_agreement_pct,
    load_quantized,
    quantize,
)

__all__ = ["Exported", "Plan", "Target", "export_as_it_is", "export_calibrated", "plan", "write"]

Target = Literal["onnx", "onnx-integer", "onnx-float", "tensorrt"]
_FLAVOURS = {"u8s8": True, "s8s8": False}


@dataclass(frozen=True)
class Plan:
    """What was asked for, once it is known to be possible.

    Attributes:
        model: the checkpoint or program.
        output: the file to write.
        target: the format.
        unsigned: whether activations may be unsigned, by the flavour.
        precision, profile: of an engine.
    """

    model: Path
    output: Path
    target: Target
    unsigned: bool
    precision: Precision
    profile: Profile

    @property
    def activation_bits(self) -> int | None:
        """The only width that the format holds; None for any."""
        return 8 if self.target in ("onnx", "tensorrt") else None

    @property
    def calibrates(self) -> bool:
        """Whether the model is quantized on the way."""
        floats = self.target == "onnx-float" or (
            self.target == "tensorrt" and self.precision != "int8"
        )
        return self.model.suffix == ".nemo" and not floats


@dataclass(frozen=True)
class Exported:
    """A model and its description."""

    model: onnx.ModelProto
    description: Description


def plan(
    model: Path,
    output: Path,
    target: str,
    flavour: str | None,
    precision: str | None = None,
    batch_range: str | None = None,
    frame_range: str | None = None,
) -> Plan:
    """Check what can be checked before the model is read.

    Raises:
        InputError: an unknown format or flavour, or one that does not go with the model; or
            TensorRT is asked for and missing.
    """
    if target not in get_args(Target):
        raise InputError(f"The format {target!r} is unknown; use {', '.join(get_args(Target))}.")
    suffixes = (".plan", ".engine") if target == "tensorrt" else (".onnx",)
    if output.suffix not in suffixes:
        raise InputError(f"The output {output} must end in {' or '.join(suffixes)}.")
    if model.suffix not in (".nemo", ".zq"):
        raise InputError(f"{model} is neither a .nemo checkpoint nor a .zq program.")
    if model.suffix == ".zq" and target != "onnx-integer":
        raise InputError(
            f"{model} is an integer program, for onnx-integer; give the .nemo file for {target}."
        )
    if flavour is not None and target != "onnx":
        raise InputError(f"The flavour is one of onnx; leave it out for {target}.")
    if flavour not in (None, *_FLAVOURS):
        raise InputError(f"The flavour {flavour!r} is unknown; use {' or '.join(_FLAVOURS)}.")
    if target != "tensorrt" and (precision, batch_range, frame_range) != (None, None, None):
        raise InputError(
            f"Precision and ranges are those of tensorrt; leave them out for {target}."
        )
    if precision not in (None, *get_args(Precision)):
        raise InputError(
            f"The precision {precision!r} is unknown; use {', '.join(get_args(Precision))}."
        )
    profile = Profile()
    if batch_range is not None:
        profile = replace(profile, batch=parse_range(batch_range))
    if frame_range is not None:
        profile = replace(profile, frames=parse_range(frame_range))
    if target == "tensorrt":
        from zqlib.export.tensorrt import require_device

        require_device()
    unsigned = _FLAVOURS[flavour or ("s8s8" if target == "tensorrt" else "u8s8")]
    return Plan(model, output, target, unsigned, precision or "int8", profile)  # type: ignore[arg-type]


def export_as_it_is(plan: Plan) -> Exported:
    """A program as integer ONNX, or a checkpoint as float ONNX.

    Raises:
        InputError: a bad file.
    """
    if plan.target == "onnx-integer":
        return _integer(load_quantized(plan.model))
    model = load_model(plan.model)
    graph = fold(model.network, QuantScheme())
    half = plan.target == "tensorrt" and plan.precision == "fp16"
    description = Description(
        model.name, model.family, "float16" if half else "float32", model.labels,
        model.front_end.config, subsampling_factor(graph.operators),
    )  # fmt: skip
    exported = export_float(graph, description.metadata())
    return Exported(to_float16(exported) if half else exported, description)


def export_calibrated(plan: Plan, given: Calibrated) -> Exported:
    """A checkpoint with Q/DQ, or as integer ONNX.

    Raises:
        InputError: calibration saw only zeros somewhere, or Q/DQ cannot hold the scheme.
        LoweringError: an accumulator could overflow.
    """
    model, scheme = given.model, given.scheme
    if plan.target == "onnx-integer":
        quantized = quantize(model, given.batches, scheme, given.description)
        agreement_pct = frame_agreement_pct(
            model, quantized.program, quantized.input_scale, given.batches
        )
        return _integer(quantized, agreement_pct)
    graph, scales = prepare(model.network, given.batches, scheme, q_dq=True)
    program = lower(graph, scales, scheme)
    flavour = "u8s8" if scheme.unsigned_relu else "s8s8"
    description = Description(
        model.name, model.family, f"Q/DQ, {scheme.name}, {flavour}", model.labels,
        model.front_end.config, subsampling_factor(graph.operators), scheme, given.description,
        frame_agreement_pct=frame_agreement_pct(
            model, program, scales[graph.input], given.batches
        ),
    )  # fmt: skip
    return Exported(export_qdq(graph, scales, scheme, description.metadata()), description)


def _integer(model: QuantizedModel, agreement_pct: float | None = None) -> Exported:
    description = Description(
        model.name, model.family, f"integers only, {model.scheme.name}", model.labels,
        model.front_end.config, subsampling_factor(model.program.operators), model.scheme,
        model.calibration, model.input_scale, agreement_pct,
    )  # fmt: skip
    return Exported(export_integer(model.program, description.metadata()), description)


def write(plan: Plan, exported: Exported) -> str:
    """Write the model, its tokens and its card, each atomically; an engine is built first.

    Returns:
        A sentence about them.

    Raises:
        InputError: the output cannot be written, or TensorRT makes no such engine of the model.
    """
    texts = {}
    if plan.target == "tensorrt":
        from zqlib.export.tensorrt import build_engine

        content, record = build_engine(
            exported.model, plan.precision, plan.profile, user_cache("tensorrt")
        )
        output, made = record.path(plan.output), record.summary()
        texts[record_path(output)] = json.dumps(record.to_json(), indent=2) + "\n"
    else:
        content = exported.model.SerializeToString(deterministic=True)
        opset = next(entry.version for entry in exported.model.opset_import if not entry.domain)
        output, made = plan.output, f"ONNX opset {opset}"
    tokens, card = output.with_suffix(".tokens.txt"), output.with_suffix(".md")
    description = exported.description
    with atomic_output(output) as temporary:
        temporary.write_bytes(content)
    size_mb = output.stat().st_size / 1e6
    made = f"{size_mb:.2f} MB, {made}"
    texts[tokens] = tokens_file(description.labels)
    texts[card] = model_card(output.name, tokens.name, description, exported.model, made)
    for path, text in texts.items():
        with atomic_output(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return (
        f"{output}: {description.family} {description.name}, {description.contents}, "
        f"{size_mb:.2f} MB; {card.name} and {tokens.name} beside it"
    )
