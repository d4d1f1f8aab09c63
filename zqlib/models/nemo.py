"""Reads and writes `.nemo` archives (a tar of a YAML config, a state dict and artifacts).

An archive is untrusted input: only regular files of a plain name are read, straight from the tar
and never extracted by its paths; weights are loaded with `weights_only=True`.
"""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from zqlib.errors import InputError
from zqlib.files import atomic_output

__all__ = ["NemoArchive", "load_state", "read_nemo", "write_nemo"]

_CONFIG = "model_config.yaml"
_WEIGHTS = "model_weights.ckpt"
_MAX_BYTES = 4 << 30  # more than any public CTC checkpoint; bounds what a hostile archive can claim


@dataclass(frozen=True)
class NemoArchive:
    """The content of a `.nemo` file.

    Attributes:
        config: the parsed `model_config.yaml`.
        state: parameter and buffer names to tensors, as stored.
        artifacts: other files by name (a tokenizer model, a vocabulary).
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    artifacts: dict[str, bytes]


def read_nemo(path: Path) -> NemoArchive:
    """Read a `.nemo` archive (plain or gzip-compressed tar).

    Raises:
        InputError: the file is missing, not a tar, truncated, lacks the config or the weights,
            holds a link, a device or a path that leaves the archive, or weights that need code to
            be unpickled.
    """
    files = _read_members(path)
    for name in (_CONFIG, _WEIGHTS):
        if name not in files:
            raise InputError(f"{path} holds no {name}; it is not a .nemo archive of a model.")
    try:
        config = yaml.safe_load(files.pop(_CONFIG))
        if not isinstance(config, dict):
            raise yaml.YAMLError("it is not a mapping")
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"The {_CONFIG} in {path} is not valid YAML ({message}).") from error
    try:
        state = torch.load(io.BytesIO(files.pop(_WEIGHTS)), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise TypeError("it is not a state dict")
    except Exception as error:  # torch raises many types for damaged or hostile bytes
        raise InputError(
            f"The weights in {path} cannot be loaded safely ({type(error).__name__}: corrupt data "
            "or a pickle that runs code); get the checkpoint again from a source you trust."
        ) from error
    return NemoArchive(config, state, files)


def _read_members(path: Path) -> dict[str, bytes]:
    if not path.is_file():
        raise InputError(f"The checkpoint {path} does not exist; check the path.")
    files: dict[str, bytes] = {}
    total_bytes = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                if not member.isreg() or name.startswith("/") or ".." in Path(name).parts:
                    raise InputError(
                        f"{path} holds the unsafe entry {member.name!r} (a link, a device or a "
                        "path outside the archive); do not trust this file."
                    )
                total_bytes += member.size
                if total_bytes > _MAX_BYTES:
                    raise InputError(
                        f"{path} claims more than {_MAX_BYTES >> 30} GiB; do not trust this file."
                    )
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
                if len(content) != member.size:
                    raise tarfile.ReadError(f"{name} is cut off")
                files[name] = content
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete .nemo archive ({error}); download or copy it again."
        ) from error
    return files


def write_nemo(
    path: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    artifacts: Mapping[str, bytes] | None = None,
) -> None:
    """Write a `.nemo` archive that NeMo's `restore_from` accepts; same input, same bytes."""
    weights = io.BytesIO()
    torch.save(dict(state), weights)
    files = {
        _CONFIG: yaml.safe_dump(dict(config), sort_keys=False).encode(),
        _WEIGHTS: weights.getvalue(),
        **(artifacts or {}),
    }
    with atomic_output(path) as temporary, tarfile.open(temporary, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")  # the default date and owner are constants
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a checkpoint's tensors into `module`, converting to its float type.

    The mel front-end's constants, which NeMo stores beside the weights, are the only keys left out.

    Raises:
        InputError: a key is missing, unknown, of another shape, or holds values that are not
            finite.
    """
    state = {key: value for key, value in state.items() if not key.startswith("preprocessor.")}
    expected = module.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"{source} lacks the tensor {missing[0]!r} ({len(missing)} missing).")
    if unknown := sorted(state.keys() - expected.keys()):
        raise InputError(
            f"{source} holds the tensor {unknown[0]!r} that its config does not name "
            f"({len(unknown)} unknown)."
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"The tensor {key!r} in {source} has shape {tuple(value.shape)}, its config needs "
                f"{tuple(expected[key].shape)}."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"The tensor {key!r} in {source} holds values that are not finite.")
    module.load_state_dict(dict(state))
