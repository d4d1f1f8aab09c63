"""Reads and writes `.nemo` archives (a tar of a YAML config, a state dict and artifacts).

An archive is untrusted input: its files are read into memory by `zqlib.archives`, its YAML without
tags and within a limit, its weights with `weights_only=True`.
"""

import gzip
import io
import tarfile
import textwrap
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from zqlib.archives import read_members
from zqlib.errors import InputError
from zqlib.files import atomic_output

__all__ = ["NemoArchive", "load_state", "read_nemo", "write_nemo"]

_CONFIG = "model_config.yaml"
_WEIGHTS = "model_weights.ckpt"
_MAX_BYTES = 4 << 30  # more than any public CTC checkpoint; bounds what a hostile archive can claim
_MAX_CONFIG_BYTES = 1 << 20
_MAX_CONFIG_NODES = 1 << 17  # a vocabulary of thousands of word pieces fits
_DTYPES = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
}


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
        InputError: the file is missing, not a tar, truncated, corrupt or hostile (see
            `zqlib.archives`), lacks the config or the weights, holds a config that is no plain
            YAML mapping, or weights that are no plain state dict.
    """
    files = read_members(path, max_bytes=_MAX_BYTES)
    for name in (_CONFIG, _WEIGHTS):
        if name not in files:
            raise InputError(f"{path} holds no {name}; it is not a .nemo archive of a model.")
    try:
        config = _parse_config(files.pop(_CONFIG))
    except Exception as error:  # yaml's constructors raise many types for odd values
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        raise InputError(
            f"The {_CONFIG} in {path} is not valid ({reason}); get the checkpoint again."
        ) from error
    try:
        state = _parse_weights(files.pop(_WEIGHTS))
    except Exception as error:  # torch raises many types for damaged or hostile bytes
        raise InputError(
            f"The weights in {path} cannot be loaded safely ({type(error).__name__}: corrupt data "
            "or a pickle that runs code); get the checkpoint again from a source you trust."
        ) from error
    return NemoArchive(config, state, files)


def _parse_config(text: bytes) -> dict[str, Any]:
    if len(text) > _MAX_CONFIG_BYTES:
        raise yaml.YAMLError(f"it is larger than {_MAX_CONFIG_BYTES >> 20} MiB")
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    # Aliases let a small text stand for an endless or exponential structure: count it expanded.
    nodes, count = [root], 0
    while nodes:
        node = nodes.pop()
        count += 1
        if count > _MAX_CONFIG_NODES:
            raise yaml.YAMLError(f"it expands to more than {_MAX_CONFIG_NODES} values")
        if isinstance(node, yaml.MappingNode):
            nodes.extend(part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
    config = loader.construct_document(root) if root else None
    if not isinstance(config, dict):
        raise yaml.YAMLError("it is not a mapping")
    return config


def _parse_weights(content: bytes) -> dict[str, Tensor]:
    if zipfile.is_zipfile(io.BytesIO(content)):  # checkpoints of before torch 1.6 are not
        # torch unpacks whatever a record claims, and compares no checksum
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            if not stored or sum(record.file_size for record in records) > len(content):
                raise ValueError("records that unpack to more than they are")
            if damaged := archive.testzip():
                raise ValueError(f"a wrong checksum of {damaged}")
    with warnings.catch_warnings(action="ignore"):  # an error says enough
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError("not a state dict")
    for key, value in state.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not (isinstance(key, str) and plain and value.is_cpu and value.dtype in _DTYPES):
            raise TypeError(f"{key!r} is not a plain tensor")
    return state


def write_nemo(
    path: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    artifacts: Mapping[str, bytes] | None = None,
) -> None:
    """Write a `.nemo` archive that NeMo's `restore_from` accepts; same input, same bytes.

    It is compressed with gzip: float weights become some 7 % smaller.
    """
    weights = io.BytesIO()  # in memory, because torch stores the name of a file in it
    # clones, because torch stores the whole memory behind a view
    torch.save({key: value.detach().cpu().clone() for key, value in state.items()}, weights)
    files = {
        _CONFIG: yaml.safe_dump(dict(config), sort_keys=False).encode(),
        _WEIGHTS: weights.getvalue(),
        **(artifacts or {}),
    }
    with (
        atomic_output(path) as temporary,
        temporary.open("wb") as stream,
        # neither the time nor the temporary name
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")  # the default date and owner are constants
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Make `module`, which may be on the `meta` device, of a checkpoint's tensors.

    They are copied to the types that the module has, on the CPU.
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
    converted = {}
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"The tensor {key!r} in {source} has shape {tuple(value.shape)}, its config needs "
                f"{tuple(expected[key].shape)}."
            )
        converted[key] = value.to(expected[key].dtype, copy=True).contiguous()
        if not torch.isfinite(converted[key]).all():
            raise InputError(f"The tensor {key!r} in {source} holds values that are not finite.")
    module.load_state_dict(converted, assign=True)
