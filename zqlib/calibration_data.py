"""Where calibration features come from: synthesis (no data), noise, or real recordings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zqlib.audio import audio_features, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.files import read_json, sha256_file, user_cache
from zqlib.models import CTCModel
from zqlib.noise import noise_batches
from zqlib.synthesis import REDUCED, SynthesisConfig, as_calibration, synthesize

__all__ = ["CALIBRATIONS", "calibration_batches", "synthesis_cache", "synthesis_config"]

CALIBRATIONS = ("synthetic", "noise", "real")
_REAL_UTTERANCES = 20


def synthesis_cache() -> Path:
    """Where `zq quantize` keeps finished synthetic batches: $ZQ_CACHE or ~/.cache/zqlib."""
    return user_cache("synthesis")


def synthesis_config(name: str, **overrides: int | None) -> SynthesisConfig:
    """A synthesis setting by name, or from a JSON file, with some fields replaced.

    Args:
        name: `reduced`, `authors`, or the path of a JSON file of `SynthesisConfig` fields.
        overrides: fields to replace; None leaves one as it is.

    Raises:
        InputError: neither a known name nor a readable file, or an impossible value.
    """
    if name == "reduced":
        config = REDUCED
    elif name == "authors":
        config = SynthesisConfig(deviation="authors")
    elif name.endswith(".json"):
        config = SynthesisConfig.from_json(read_json(Path(name)))
    else:
        raise InputError(f"The synthesis {name!r} is unknown; use reduced, authors or a JSON file.")
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    return replace(config, **given)


def calibration_batches(
    model: CTCModel,
    kind: str,
    config: SynthesisConfig,
    manifest: Path | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Any]]:
    """Features to calibrate a model on, and a JSON-able description of them.

    Args:
        model: the float model.
        kind: `synthetic`, `noise` (as much of it as the synthesis would make), or `real`.
        config: of the synthesis; its size and seed also serve `noise`.
        manifest: recordings, for `real` only; the first 20 are used.
        cache: folder of finished synthetic batches; None for `synthesis_cache()`.
        progress: show a bar.

    Returns:
        Pairs of features (batch, n_mels, frames) float32 and lengths (batch,) int64; and the
        description.

    Raises:
        InputError: an unknown kind, `real` without a manifest or a manifest without `real`, or bad
            audio.
    """
    if kind not in CALIBRATIONS:
        raise InputError(f"The calibration {kind!r} is unknown; use {', '.join(CALIBRATIONS)}.")
    if (kind == "real") != (manifest is not None):
        raise InputError("Calibration on real data, and only that, needs a manifest (--manifest).")
    n_mels = model.front_end.config.n_mels
    if kind == "synthetic":
        cache = synthesis_cache() if cache is None else cache
        batches = synthesize(model.network, n_mels, config, cache, progress)
        return as_calibration(batches), {"kind": kind, "synthesis": config.to_json()}
    if kind == "noise":
        size = (config.batches, config.batch_size, config.frames)
        noise = noise_batches(n_mels, *size, seed=config.seed)
        return noise, {"kind": kind, "size": list(size), "seed": config.seed}
    assert manifest is not None
    utterances = read_manifest(manifest)[:_REAL_UTTERANCES]
    features = [audio_features(u.audio_path, model.front_end) for u in utterances]
    details = {"utterances": len(utterances), "manifest_sha256": sha256_file(manifest)}
    return [pad_features([feature]) for feature in features], {"kind": kind, **details}
