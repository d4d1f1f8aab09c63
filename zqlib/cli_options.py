"""Options that commands share, what follows from them, and what commands print alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zqlib.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from zqlib.models import CTCModel
    from zqlib.quantization.scheme import QuantScheme

__all__ = ["Batches", "Bits", "Calibrated", "Calibration", "Device", "Format", "Manifest", "Quiet",
           "Ranges", "Scheme", "Seed", "Steps", "Synthesis", "Weights", "calibrated",
           "check_format", "needs_export", "print_table"]  # fmt: skip

Bits = Annotated[
    int | None,
    typer.Option(
        help="2 to 8, of weights; activations have as many, but 8 where weights have fewer than 6 "
        "[default: 8]"
    ),
]
Scheme = Annotated[
    str | None,
    typer.Option(
        help="other mixtures: w4a8; w4g16a8, with a sub-scale for every 16 weights; w4.5a8 or "
        "w4.5g16a8, so many bits on average, chosen layer by layer"
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(
        help="activation ranges: minmax, percentile or mse [default: minmax for 8 bits, but "
        "mse for a Jasper; below mse, but percentile for a Conformer]"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="rounding of weights: nearest, gptq (second order, on the calibration data) or "
        "adaround (learned on it, slower) [default: adaround below 6 bits, gptq above, but "
        "nearest for a Jasper of 8]"
    ),
]
Calibration = Annotated[
    str, typer.Option(help="synthetic (no data), noise, or real (with --manifest)")
]
Manifest = Annotated[
    Path | None, typer.Option(help="recordings to calibrate on, for --calibration real")
]
Synthesis = Annotated[
    str, typer.Option(help="reduced (minutes), authors (20 x 200 steps) or a JSON file")
]
Steps = Annotated[int | None, typer.Option(help="optimisation steps per batch")]
Batches = Annotated[int | None, typer.Option(help="synthetic batches")]
Seed = Annotated[int | None, typer.Option(help="of the synthetic data or the noise [default: 0]")]
Device = Annotated[
    str | None,
    typer.Option(
        help="where to synthesize, calibrate and round: cpu, or cuda for an NVIDIA GPU "
        "[default: cpu]"
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]
Format = Annotated[str, typer.Option("--format", help="table for people, json for scripts")]


def check_format(format: str) -> None:
    """Refuse another format than `Format` names.

    Raises:
        InputError: the format is unknown.
    """
    if format not in ("table", "json"):
        raise InputError(f"The format {format!r} is unknown; use table or json.")


def needs_export(module: str) -> Any:
    """Import a module of zqlib whose packages are the extra `export`.

    Raises:
        InputError: one of them is missing.
    """
    try:
        return import_module(f"zqlib.{module}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"The package {error.name} is missing; run `pip install 'zqlib[export]'`."
        ) from error


def print_table(alignment: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the header among them, in columns as wide as their longest cell.

    Args:
        alignment: `<` or `>` for each column.
        rows: cells.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, alignment, widths, strict=True)
        print("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())


@dataclass(frozen=True)
class Calibrated:
    """A checkpoint and what to calibrate it on.

    Attributes:
        model: the float model, on the device that was asked for.
        scheme: bits and range method.
        batches: features (batch, n_mels, frames) float32 and lengths (batch,) int64.
        description: of the batches, JSON-able, with a key `kind`; a GPU that is used is named under
            `device`.
    """

    model: "CTCModel"
    scheme: "QuantScheme"
    batches: "list[tuple[Tensor, Tensor]]"
    description: dict[str, Any]


def calibrated(
    path: Path,
    *,
    bits: int | None,
    scheme: str | None,
    ranges: str | None,
    weights: str | None = None,
    calibration: str,
    manifest: Path | None,
    synthesis: str,
    steps: int | None,
    batches: int | None,
    seed: int | None,
    quiet: bool,
    device: str | None = None,
    unsigned: bool = True,
    activation_bits: int | None = None,
) -> Calibrated:
    """Read a checkpoint and prepare its calibration.

    Args:
        path: the checkpoint.
        bits, scheme, ranges, weights, calibration, manifest, synthesis, steps, batches, seed,
            quiet, device: the options above.
        unsigned: whether activations after a ReLU or a Swish are unsigned.
        activation_bits: the only width that what is made of it can hold; None for any.

    Raises:
        InputError: options that contradict each other or are unknown, or a bad file.
    """
    import torch

    from zqlib.calibration_data import calibration_batches, synthesis_config
    from zqlib.devices import choose_device
    from zqlib.models import load_model
    from zqlib.quantization.scheme import preset, usual_name, usual_scheme

    if bits is not None and scheme is not None:
        raise InputError("Give --bits or --scheme, not both.")
    name = "w8a8" if scheme is None else scheme
    name = name if bits is None else usual_name(bits)
    overrides: dict[str, Any] = {"unsigned_relu": unsigned, "offset_swish": unsigned}
    if ranges is not None:
        overrides["range_method"] = ranges
    if weights is not None:
        overrides["weight_rounding"] = weights
    wanted = preset(name, **overrides)  # refused before the model is read
    if activation_bits not in (None, wanted.activation_bits):
        raise InputError(
            f"This format holds activations of {activation_bits} bits, {name} has "
            f"{wanted.activation_bits}; use w<bits>a{activation_bits}."
        )
    config = synthesis_config(synthesis, steps=steps, batches=batches, seed=seed)
    chosen_device = choose_device("cpu" if device is None else device)
    model = load_model(path)
    model.network.to(chosen_device)
    chosen = usual_scheme(name, model.family, **overrides)
    data, description = calibration_batches(
        model, calibration, config, manifest, progress=not quiet
    )
    if chosen_device.type != "cpu":
        description["device"] = torch.cuda.get_device_name(chosen_device)
    return Calibrated(model, chosen, data, description)
