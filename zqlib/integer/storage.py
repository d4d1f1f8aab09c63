"""Programs in files: one safetensors file, checksummed, weights bit-packed, gzip around the whole.

Layout: the tensors of the program (weights, and their sub-scales if any, packed without gaps by
`zqlib.integer.packing`, little-endian bit order), and in the header's metadata the single entry
`zq`: JSON with `version`, `sha256` and `program`, the operators. (A single entry, because
safetensors writes several in random order.) The checksum covers
the program and the name, type, shape and bytes of every tensor. safetensors cannot hold code, and
its reader checks every offset against the file's size. gzip, because quantized weights are not
uniform and requantization constants repeat: it takes 14 to 17 % off the real models.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from zqlib.errors import InputError, ZqError
from zqlib.files import atomic_output
from zqlib.integer.describe import describe, rebuild
from zqlib.integer.packing import pack_bits, pack_weight, unpack_bits, unpack_weight
from zqlib.integer.program import (
    Argmax,
    Conv1d,
    Operator,
    Program,
    Requantize,
    TensorType,
    Term,
)
from zqlib.integer.stored import GZIP, StoredTensors

__all__ = ["FORMAT_VERSION", "load_program", "pack_bits", "save_program", "unpack_bits"]

FORMAT_VERSION = 5
_DTYPES = {"int8": torch.int8, "uint8": torch.uint8, "int32": torch.int32}


def save_program(
    path: Path,
    program: Program,
    metadata: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a program atomically; same program, same bytes.

    Args:
        path: the file to write.
        program: the program.
        metadata: JSON-able description that the executor never reads (front-end, labels, scales).
        extra: further tensors to keep beside the program.
    """
    tensors: dict[str, Tensor] = {f"extra.{name}": value for name, value in (extra or {}).items()}
    description = {
        "tensors": {
            name: [kind.channels, str(kind.dtype).removeprefix("torch."), kind.low, kind.high]
            for name, kind in program.tensors.items()
        },
        "operators": [_describe(operator, tensors) for operator in program.operators],
        "input": program.input,
        "logits": program.logits,
        "tokens": program.tokens,
        "metadata": dict(metadata),
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header = {
        "version": FORMAT_VERSION,
        "sha256": _digest(description, tensors),
        "program": description,
    }
    with atomic_output(path) as temporary:
        content = save(tensors, {"zq": json.dumps(header, sort_keys=True)})
        temporary.write_bytes(zlib.compress(content, wbits=GZIP))


def _describe(operator: Operator, tensors: dict[str, Tensor]) -> dict[str, Any]:
    match operator:
        case Conv1d():
            packed = pack_weight(operator.weight, operator.weight_bits, operator.group_size)
            tensors |= {f"{operator.name}.{key}": value for key, value in packed.items()}
            if operator.bias is not None:
                tensors[f"{operator.name}.bias"] = operator.bias
            fields = ("stride", "padding", "dilation", "groups", "weight_bits", "group_size",
                      "input", "output")  # fmt: skip
            return {
                "op": "conv1d",
                "name": operator.name,
                "shape": list(operator.weight.shape),
                **{field: getattr(operator, field) for field in fields},
            }
        case Requantize():
            for index, term in enumerate(operator.terms):
                tensors[f"{operator.name}.{index}.m"] = term.m
                tensors[f"{operator.name}.{index}.e"] = term.e
            inputs = [term.input for term in operator.terms]
            return {
                "op": "requantize",
                "name": operator.name,
                "inputs": inputs,
                "output": operator.output,
            }
        case Argmax():
            return {
                "op": "argmax",
                "name": operator.name,
                "input": operator.input,
                "output": operator.output,
            }
        case _:
            kept, entry = describe(operator)
            tensors |= {f"{operator.name}.{key}": value for key, value in kept.items()}
            return entry


def _digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    kinds = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
    digest = hashlib.sha256(json.dumps([description, kinds], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def load_program(
    path: Path, lazy: bool = False
) -> tuple[Program, dict[str, Any], dict[str, Tensor]]:
    """Read a program and check it as if it were built anew.

    Args:
        path: the file.
        lazy: keep no weights in memory: they are read anew by whoever walks through the operators,
            from a copy of the file.

    Returns:
        The program, its metadata and its extra tensors.

    Raises:
        InputError: the file is missing, truncated, altered, of another version, or holds a program
            that breaks a rule of `Program`.
    """
    if not path.is_file():
        raise InputError(f"The program {path} does not exist; make it with `zq quantize`.")
    try:
        tensors = StoredTensors(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be unpacked to the temporary folder ({error}); set TMPDIR to another."
        ) from error
    except (SafetensorError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path} is not a complete .zq file ({error}); make it again with `zq quantize`."
        ) from error
    if "zq" not in tensors.metadata:
        raise InputError(f"{path} is a safetensors file but not a .zq program; give another file.")
    try:
        header = json.loads(tensors.metadata["zq"])
        version, description = header["version"], header["program"]
        intact = header["sha256"] == _digest(description, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} has a malformed header ({error!r}); make it again with `zq quantize`."
        ) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, this zqlib reads version {FORMAT_VERSION}; "
            "make it again with `zq quantize`."
        )
    if not intact:
        raise InputError(f"{path} does not match its checksum; make it again with `zq quantize`.")
    try:
        stored = _StoredOperators(description["operators"], tensors)
        program = Program(
            tensors={
                name: TensorType(channels, _DTYPES[dtype], low, high)
                for name, (channels, dtype, low, high) in description["tensors"].items()
            },
            operators=stored if lazy else tuple(stored),
            input=description["input"],
            logits=description["logits"],
            tokens=description["tokens"],
        )
        return program, dict(description["metadata"]), _with_prefix("extra.", tensors)
    except (
        KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, ZqError
    ) as error:  # fmt: skip
        raise InputError(
            f"{path} does not hold a valid program ({error}); make it again with `zq quantize`."
        ) from error


@dataclass(frozen=True)
class _StoredOperators(Iterable[Operator]):
    entries: Sequence[dict[str, Any]]
    tensors: Mapping[str, Tensor]

    def __iter__(self) -> Iterator[Operator]:
        return (_rebuild(entry, self.tensors) for entry in self.entries)


def _rebuild(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> Operator:
    entry = dict(entry)
    kind, name = entry.pop("op"), entry["name"]
    if kind == "conv1d":
        kept = ("weight",) if entry["group_size"] is None else ("weight", "multipliers")
        packed = {key: tensors[f"{name}.{key}"] for key in kept}
        weight = unpack_weight(entry, packed, axes=3)
        return Conv1d(weight=weight, bias=tensors.get(f"{name}.bias"), **entry)
    if kind == "requantize":
        terms = tuple(
            Term(source, tensors[f"{name}.{index}.m"], tensors[f"{name}.{index}.e"])
            for index, source in enumerate(entry["inputs"])
        )
        return Requantize(name, terms, entry["output"])
    if kind == "argmax":
        return Argmax(**entry)
    return rebuild(kind, entry, _with_prefix(f"{name}.", tensors))


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): tensors[k] for k in tensors if k.startswith(prefix)}
