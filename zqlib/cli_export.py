"""`zq export` and `zq compare`: a model for other runtimes, and how far they agree with it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zqlib.cli_options import (
    Batches,
    Bits,
    Calibration,
    Device,
    Format,
    Manifest,
    Quiet,
    Ranges,
    Scheme,
    Seed,
    Steps,
    Synthesis,
    Weights,
    calibrated,
    check_format,
    needs_export,
    print_table,
)
from zqlib.errors import InputError

__all__ = ["compare", "export"]


def export(
    model: Annotated[
        Path, typer.Argument(help="a .nemo checkpoint, or a .zq program for onnx-integer")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="the .onnx file to write, or the .plan: precision, device and version of "
            "TensorRT are put before the suffix",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="onnx (Q/DQ), onnx-integer (no floating point inside), onnx-float (a baseline), "
            "or tensorrt (an engine for this machine's GPU)"
        ),
    ] = "onnx",
    flavour: Annotated[
        str | None,
        typer.Option(
            help="of onnx: u8s8 for ONNX Runtime and OpenVINO, s8s8 for TensorRT [default: u8s8]"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="of tensorrt: int8, fp16 or fp32 [default: int8]")
    ] = None,
    batch_range: Annotated[
        str | None,
        typer.Option(help="of tensorrt: least, usual and greatest batch [default: 1,1,8]"),
    ] = None,
    frame_range: Annotated[
        str | None,
        typer.Option(help="of tensorrt: the same in frames of 10 ms [default: 16,1000,3000]"),
    ] = None,
    bits: Bits = None,
    scheme: Scheme = None,
    ranges: Ranges = None,
    weights: Weights = None,
    calibration: Calibration = "synthetic",
    manifest: Manifest = None,
    synthesis: Synthesis = "reduced",
    steps: Steps = None,
    batches: Batches = None,
    seed: Seed = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Write a model for other runtimes, with a model card and its tokens beside it."""
    command = needs_export("export.command")
    plan = command.plan(model, output, to, flavour, precision, batch_range, frame_range)
    settings = (bits, scheme, ranges, weights, manifest, steps, batches, seed, device)
    if not plan.calibrates:
        if any(value is not None for value in settings):
            raise InputError(f"{model} to {to} needs no calibration; leave out its options.")
        exported = command.export_as_it_is(plan)
    else:
        given = calibrated(
            model, bits=bits, scheme=scheme, ranges=ranges, weights=weights,
            calibration=calibration, manifest=manifest, synthesis=synthesis, steps=steps,
            batches=batches, seed=seed, quiet=quiet, device=device,
            unsigned=plan.unsigned, activation_bits=plan.activation_bits,
        )  # fmt: skip
        exported = command.export_calibrated(plan, given)
    print(command.write(plan, exported))


def compare(
    model: Annotated[Path, typer.Argument(help="a .nemo checkpoint")],
    utterances: Annotated[Path, typer.Argument(help="a NeMo JSONL manifest with transcripts")],
    engine: Annotated[
        list[str] | None, typer.Option(help="one of them; repeat it [default: all installed]")
    ] = None,
    ranges: Ranges = None,
    calibration: Calibration = "synthetic",
    manifest: Manifest = None,
    synthesis: Synthesis = "reduced",
    steps: Steps = None,
    batches: Batches = None,
    seed: Seed = None,
    device: Device = None,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Run every form of a model on the same utterances, from one calibration at 8 bits."""
    check_format(format)
    agreement = needs_export("export.agreement")
    from zqlib.corpora.manifest import read_manifest

    heard = read_manifest(utterances)
    given = calibrated(
        model, bits=8, scheme=None, ranges=ranges, calibration=calibration, manifest=manifest,
        synthesis=synthesis, steps=steps, batches=batches, seed=seed, quiet=quiet, device=device,
    )  # fmt: skip
    rows = agreement.agreement(
        given.model, given.batches, given.scheme, heard, engine, progress=not quiet
    )
    if format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    header = ("engine", "WER %", "same tokens %", "max difference", "(in steps)",
              "layers in integers")  # fmt: skip
    cells = [
        (
            row.engine,
            f"{row.wer_pct:.2f}",
            f"{row.same_tokens_pct:.1f}",
            f"{row.max_difference:.3g}",
            f"{row.max_difference_steps:.0f}",
            f"{len(row.layers.integer)} of {len(row.layers.integer + row.layers.float)}"
            if row.layers
            else "",
        )
        for row in rows
    ]
    print_table("<>>>><", [header, *cells])
