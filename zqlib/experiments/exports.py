"""The forms of each model in other runtimes: do they agree, how large are they, what do they do?"""

import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import onnx

from zqlib.calibration_data import calibration_batches
from zqlib.corpora.manifest import read_manifest
from zqlib.digests import cache_key
from zqlib.experiments.bit_operations import FRAMES, bit_operations
from zqlib.experiments.systems import Checkpoint, Recipe, checkpoints
from zqlib.export.agreement import agreement, installed_engines
from zqlib.export.onnx_float import export_float
from zqlib.export.onnx_integer import export_integer
from zqlib.export.onnx_qdq import export_qdq
from zqlib.files import read_json, write_json
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.packing import stored_bits
from zqlib.machines import machine_folder, other_machines, unchanged_since
from zqlib.noise import noise_batches
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit
from zqlib.quantization.fold import fold
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme, preset
from zqlib.quantized_model import load_quantized
from zqlib.results import commit, device_name, provenance

__all__ = ["exports_elsewhere", "exports_experiment"]


def exports_experiment(parameters: Parameters) -> Iterator[dict[str, Any]]:
    """Compare, weigh and count the forms of each model of a profile, on its first split, here.

    Yields:
        The record of each model: `agreement`, rows with the fields of
        `zqlib.export.agreement.Agreement`, layers as numbers; `formats`, 10^6 bytes by format; and
        `schemes`, for each the size of its `.zq` file and its `layers` (see `bit_operations`).
    """
    root = parameters.root
    for checkpoint in checkpoints(parameters):
        split = next(checkpoint.splits(), None)
        if split is None:
            continue
        profile = checkpoint.profile
        utterances = read_manifest(split.resolve(root))
        record = {
            "experiment": "exports",
            "profile": profile.name,
            "model": checkpoint.name,
            "family": checkpoint.model.family,
            "corpus": split.corpus,
            "split": split.split,
            "utterances": len(utterances),
            "caveats": [*split.all_caveats(utterances), *checkpoint.source.caveats],
            "parameters": sum(p.numel() for p in checkpoint.model.network.parameters()),
            "audio_s": FRAMES * checkpoint.model.front_end.config.window_stride_s,
            **_compare(checkpoint, split),
            "device": device_name(),
            "commit": commit(root),
            "provenance": provenance(
                model_sha256=checkpoint.sha256, data_sha256=checkpoint.data_sha256(split)
            ),
        }
        folder = machine_folder(profile.folder(root) / "exports")
        write_json(folder / f"{checkpoint.name}.json", record)
        yield record


def exports_elsewhere(parameters: Parameters) -> list[tuple[dict[str, Any], bool]]:
    """Records of other kinds of machines, whose runtimes may multiply in another way.

    Returns:
        Each record, and whether zqlib has not changed since.
    """
    folder = parameters.results / "exports"
    paths = (path for other in other_machines(folder) for path in sorted(other.glob("*.json")))
    records = [read_json(path) for path in paths]
    return [(r, unchanged_since(parameters.root, r["commit"], "zqlib")) for r in records]


def _compare(checkpoint: Checkpoint, split: CorpusSplit) -> dict[str, Any]:
    """What is below `work/` is not computed again."""
    profile, family = checkpoint.profile, checkpoint.model.family
    recipes = [
        Recipe(scheme, "synthetic", profile.synthesis) for scheme in profile.quant_schemes(family)
    ]
    key = cache_key(
        "zqlib.experiments.exports",
        model=checkpoint.sha256,
        data=checkpoint.data_sha256(split),
        schemes=[recipe.scheme.to_json() for recipe in recipes],
        synthesis=profile.synthesis.to_json(),
        engines=installed_engines(),
        device=device_name(),
    )
    path = checkpoint.root / "work" / "exports" / f"{checkpoint.name}-{key}.json"
    if not path.is_file():
        write_json(path, {
            "agreement": _agreement(checkpoint, split),
            "formats": _format_sizes(checkpoint),
            "schemes": {recipe.scheme.name: _cost(checkpoint, recipe) for recipe in recipes},
        })  # fmt: skip
    found: dict[str, Any] = read_json(path)
    return found


def _scheme(checkpoint: Checkpoint, unsigned: bool = True) -> QuantScheme:
    """W8A8, which all formats hold, with the profile's range method."""
    method = checkpoint.profile.quant_schemes(checkpoint.model.family)[0].range_method
    return preset("w8a8", range_method=method, unsigned_relu=unsigned, offset_swish=unsigned)


def _agreement(checkpoint: Checkpoint, split: CorpusSplit) -> list[dict[str, Any]]:
    model, profile = checkpoint.model, checkpoint.profile
    data, _ = calibration_batches(model, "synthetic", profile.synthesis, cache=checkpoint.cache)
    utterances = read_manifest(split.resolve(checkpoint.root))
    rows = agreement(model, data, _scheme(checkpoint), utterances)
    return [
        asdict(row)
        | {"layers": {kind: len(names) for kind, names in asdict(row.layers).items()}
           if row.layers else None}
        for row in rows
    ]  # fmt: skip


def _format_sizes(checkpoint: Checkpoint) -> dict[str, float]:
    """10^6 bytes of the files of each format at 8 bits; no size depends on the calibration."""
    model = checkpoint.model
    values = b"".join(v.numpy().tobytes() for v in model.network.state_dict().values())
    noise = noise_batches(model.front_end.config.n_mels, 1, 1, 64, seed=0)
    sizes = {
        ".nemo": checkpoint.path.stat().st_size / 1e6,
        "float32": model.size_mb,
        "float32, gzip": len(zlib.compress(values)) / 1e6,
        "ONNX float32": _size_mb(export_float(fold(model.network, _scheme(checkpoint)))),
    }
    for flavour, unsigned in (("u8s8", True), ("s8s8", False)):
        scheme = _scheme(checkpoint, unsigned)
        graph, scales = prepare(model.network, noise, scheme, q_dq=True)
        sizes[f"ONNX Q/DQ {flavour}"] = _size_mb(export_qdq(graph, scales, scheme))
    return sizes


def _cost(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    path = checkpoint.make_program(recipe)
    program = load_quantized(path).program
    bits = sum(
        stored_bits(operator.weight, operator.weight_bits, operator.group_size)
        for operator in program.operators
        if isinstance(operator, Conv1d | Conv2d)
    )
    return {
        "zq_mb": path.stat().st_size / 1e6,
        "weights_mb": bits / 8e6,
        "onnx_integer_mb": _size_mb(export_integer(program)),
        "layers": bit_operations(program, FRAMES),
    }


def _size_mb(model: onnx.ModelProto) -> float:
    return int(model.ByteSize()) / 1e6
