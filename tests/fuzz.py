"""Fuzzes the readers of `.nemo`, `.zq` and manifests: damaged files give an InputError, ever.

    python tests/fuzz.py --minutes 10 --seed 1

Valid files are changed byte by byte, and, below the checksums and archives that would catch that,
value by value. A file on which a reader raises anything but ZqError is kept, and the run fails.
`tests/test_fuzz.py` does a few hundred rounds of each.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from checkpoints import checkpoint, quantized, write_corpus
from safetensors.torch import load, save

from zqlib.archives import read_members
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import ZqError
from zqlib.integer import storage
from zqlib.models import load_model
from zqlib.models.nemo import write_nemo
from zqlib.quantized_model import load_quantized

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "a", "\0",
    "\ud800", [], [[]], {}, {"a": 1},
)  # fmt: skip


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert, once to three times."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 2, 8, 512)))
        match rng.randrange(5):
            case 0:
                data[start:end] = rng.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end] * rng.choice((1, 3))
            case 3:
                data[start:start] = rng.choice((b"\0", b"\xff" * 8, b"[" * 2000, b"-", b"9" * 400))
            case _:
                del data[start:]
    return bytes(data)


def change_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part, at any depth, replaced, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[str(rng.choice(ODD))] = changed[key]
            case _:
                changed[key] = change_value(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:index] + value[index + 1 :]
            case 1:
                return value[:index] + [value[index]] + value[index:]
            case _:
                return [*value[:index], change_value(value[index], rng), *value[index + 1 :]]
    return rng.choice(ODD)


def nemo_files(folder: Path) -> Callable[[random.Random], bytes]:
    """Damaged checkpoints: the archive, its config or its weights."""
    checkpoint(folder)
    path = folder / "tiny0.nemo"
    members = read_members(path, max_bytes=1 << 20)
    config = yaml.safe_load(members["model_config.yaml"])
    state = dict(load_model(path).network.state_dict())
    whole = path.read_bytes()

    def make(rng: random.Random) -> bytes:
        match rng.randrange(3):
            case 0:
                return change_bytes(whole, rng)
            case 1:
                write_nemo(folder / "c.nemo", change_value(config, rng), state)
            case _:
                name = rng.choice(list(state))
                value = state[name].reshape(-1)
                odd = rng.choice((value[:0], value * float("nan"), value))
                write_nemo(folder / "c.nemo", config, {**state, name: odd})
        return (folder / "c.nemo").read_bytes()

    return make


def zq_files(folder: Path) -> Callable[[random.Random], bytes]:
    """Damaged programs: the file, or a description with a checksum that fits it."""
    path = folder / "tiny.zq"
    quantized(checkpoint(folder)).save(path)
    whole = path.read_bytes()
    content = gzip.decompress(whole)
    described = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header, tensors = json.loads(described["__metadata__"]["zq"]), load(content)

    def make(rng: random.Random) -> bytes:
        program, kept = header["program"], dict(tensors)
        match rng.randrange(5):
            case 0:
                return change_bytes(whole, rng)
            case 1:
                return gzip.compress(change_bytes(content, rng))
            case 2:
                name = rng.choice(list(kept))
                value = kept[name]
                kept[name] = rng.choice((value.reshape(-1)[:0], value * 99, value.float()))
            case _:
                program = change_value(program, rng)
        digest = storage._digest(program, kept)
        changed = {**header, "program": program, "sha256": digest}
        return gzip.compress(save(kept, {"zq": json.dumps(changed)}))

    return make


def manifests(folder: Path) -> Callable[[random.Random], bytes]:
    """Damaged manifests: bytes, or values."""
    lines = write_corpus(folder, 3).read_bytes().splitlines()

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return change_bytes(b"\n".join(lines), rng)
        changed = [json.dumps(change_value(json.loads(line), rng)).encode() for line in lines]
        return b"\n".join(changed)

    return make


Maker = Callable[[random.Random], bytes]
READERS: dict[str, tuple[Callable[[Path], Maker], Callable[[Path], Any]]] = {
    ".nemo": (nemo_files, load_model),
    ".zq": (zq_files, load_quantized),
    ".jsonl": (manifests, read_manifest),
}  # fmt: skip


def fuzz(suffix: str, seed: int, folder: Path) -> Iterator[tuple[Path, bool]]:
    """Read damaged files without end: each file, and whether it was refused.

    Raises:
        Exception: whatever a reader raised instead of a ZqError; the file is still there.
    """
    make, read = READERS[suffix]
    next_file = make(folder)
    path = folder / f"damaged{suffix}"
    for index in range(sys.maxsize):
        try:
            path.write_bytes(next_file(random.Random(f"{seed} {index}")))
        except (ValueError, TypeError, OverflowError, AttributeError, RuntimeError):
            continue  # not a file that anybody could write
        refused = False
        try:
            read(path)
        except ZqError:
            refused = True
        yield path, refused


def main() -> int:
    """Fuzz each reader for an equal share of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = False
    for suffix in READERS:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        end_s = time.monotonic() + 60 * given.minutes / len(READERS)
        rounds = refused = 0
        try:
            for _, was_refused in fuzz(suffix, given.seed, folder):
                rounds, refused = rounds + 1, refused + was_refused
                if time.monotonic() > end_s:
                    break
        except Exception:
            failed = True
            traceback.print_exc()
            print(
                f"{suffix}: round {rounds} of seed {given.seed} crashed on {folder}/damaged{suffix}"
            )
        print(f"{suffix}: {rounds} files read, {refused} refused")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
