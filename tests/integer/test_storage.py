"""Program files: same integers back or one clear sentence, nothing between."""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_conformer
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from tiny import BLOCKS, N_MELS, integers, lowered, reproducible
from torch import Tensor

from zqlib.errors import InputError
from zqlib.integer import storage
from zqlib.integer.operators import Conv1d, Conv2d
from zqlib.integer.program import Program
from zqlib.integer.reference import run
from zqlib.integer.storage import load_program, pack_bits, save_program, unpack_bits
from zqlib.quantization.scheme import QuantScheme

METADATA = {"labels": ["a", "b"], "input_scale": 0.1, "nested": {"x": [1, 2.5, None]}}


def results(program: Program) -> Tensor:
    x = integers((2, N_MELS, 33), -2, 1, torch.int8, 0)  # in the range of any bits
    return run(program, x, torch.tensor([33, 20])).logits


@reproducible
@given(bits=st.integers(2, 8), count=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_packing_round_trips_without_gaps(bits: int, count: int, seed: int) -> None:
    limit = 2 ** (bits - 1)
    values = integers((count,), -limit, limit - 1, torch.int8, seed)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, (count,)), values)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_keeps_the_ends_of_the_range_and_the_shape(bits: int) -> None:
    limit = 2 ** (bits - 1)
    values = torch.tensor([-limit, limit - 1, 0, -1, 1] * 3, dtype=torch.int8).reshape(5, 1, 3)
    assert torch.equal(unpack_bits(pack_bits(values, bits), bits, (5, 1, 3)), values)


def test_packing_is_little_endian() -> None:
    """Fixed by the format: value + 2^(b-1), the first value in the lowest bits."""
    values = torch.tensor([-4, 3, 0, -1], dtype=torch.int8)  # 0, 7, 4, 3 in 3 bits each
    assert pack_bits(values, 3).tolist() == [0b00111000, 0b00000111]


@pytest.mark.parametrize("size", [4, 6])
def test_unpacking_checks_the_size(size: int) -> None:
    with pytest.raises(InputError, match="packed size"):
        unpack_bits(torch.zeros(size, dtype=torch.uint8), 5, (8,))


def test_unpacking_a_shape_beyond_int64_is_refused() -> None:
    with pytest.raises(InputError, match="packed size"):
        unpack_bits(torch.zeros(0, dtype=torch.uint8), 8, (2**32, 2**32, 1))


@pytest.mark.parametrize("topology", BLOCKS)
@pytest.mark.parametrize("bits", [8, 5, 2])
def test_save_and_load_give_the_same_integers(topology: str, bits: int, tmp_path: Path) -> None:
    program, _ = lowered(topology, QuantScheme(bits, bits))
    extra = {"filters": torch.rand(3, 4)}
    save_program(tmp_path / "a.zq", program, METADATA, extra)
    loaded, metadata, loaded_extra = load_program(tmp_path / "a.zq")
    assert torch.equal(results(loaded), results(program))
    assert metadata == METADATA
    assert loaded_extra.keys() == extra.keys()
    assert torch.equal(loaded_extra["filters"], extra["filters"])
    save_program(tmp_path / "b.zq", loaded, metadata, loaded_extra)
    assert (tmp_path / "a.zq").read_bytes() == (tmp_path / "b.zq").read_bytes()


def test_sub_scales_survive_a_file(tmp_path: Path) -> None:
    network, x = tiny_conformer.network(), tiny_conformer.features()
    program, _ = tiny_conformer.lowered(network, x, QuantScheme(4, 8, weight_group=4))
    save_program(tmp_path / "a.zq", program, METADATA)
    loaded, _, _ = load_program(tmp_path / "a.zq")
    for before, after in zip(program.operators, loaded.operators, strict=True):
        if isinstance(before, Conv1d | Conv2d):
            assert isinstance(after, Conv1d | Conv2d)
            assert (after.weight_bits, after.group_size) == (4, 4)
            assert torch.equal(after.weight, before.weight)


def test_same_program_same_bytes(tmp_path: Path) -> None:
    contents = set()
    for _ in range(12):
        save_program(tmp_path / "a.zq", lowered("residual")[0], METADATA)
        contents.add((tmp_path / "a.zq").read_bytes())
    assert len(contents) == 1


def test_fewer_bits_make_a_smaller_file(tmp_path: Path) -> None:
    """By what the weights lose, give or take the header's digits and alignment."""
    size = {}
    for bits in (8, 4):
        program, _ = lowered("dense", QuantScheme(bits, 8))
        save_program(tmp_path / "a.zq", program, {})
        size[bits] = len(gzip.decompress((tmp_path / "a.zq").read_bytes()))
    weights = sum(o.weight.numel() for o in program.operators if hasattr(o, "weight"))
    assert abs(size[8] - size[4] - weights / 2) < 64


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "program.zq"
    save_program(path, lowered("separable")[0], METADATA, {"filters": torch.rand(3, 4)})
    return path


def sentence(error: pytest.ExceptionInfo[InputError], path: Path) -> None:
    """The message is one sentence about this file."""
    message = str(error.value)
    assert str(path) in message
    assert message.endswith(".") and "\n" not in message


def test_truncated_file_is_refused(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    path = tmp_path / "truncated.zq"
    sizes = {0, 1, 7, 8, 9, len(content) - 1, *range(0, len(content), len(content) // 60)}
    for size in sizes:
        path.write_bytes(content[:size])
        with pytest.raises(InputError) as error:
            load_program(path)
        sentence(error, path)


def test_appended_byte_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.zq"
    path.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(InputError) as error:
        load_program(path)
    sentence(error, path)


def test_no_altered_byte_loads_other_integers(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    rng = random.Random(0)
    path = tmp_path / "altered.zq"
    expected, description, extra = load_program(saved)
    loaded_all_the_same = 0
    for offset in [*range(8), *rng.sample(range(8, len(content)), 1200)]:
        altered = bytearray(content)
        altered[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        try:
            program, metadata, tensors = load_program(path)
        except InputError:
            continue
        loaded_all_the_same += 1  # an unused bit: blank space, or an escaped character
        assert torch.equal(results(program), results(expected)), offset
        assert metadata == description, offset
        assert torch.equal(tensors["filters"], extra["filters"]), offset
    assert loaded_all_the_same < 12


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> Path:
    path.write_bytes(zlib.compress(save(tensors, metadata), wbits=31))
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    content = gzip.decompress(path.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), header["__metadata__"]


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as error:
        load_program(tmp_path / "none.zq")
    sentence(error, tmp_path / "none.zq")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_program(tmp_path)
    sentence(error, tmp_path)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("a program, honestly\n" * 20),
    "empty": lambda path: path.write_bytes(b""),
    "enormous header": lambda path: path.write_bytes(gzip.compress(b"\xff" * 7 + b"\x7f{}")),
    "plain safetensors": lambda path: save_file({"weight": torch.ones(2)}, path, {"format": "pt"}),
    "other safetensors": lambda path: write(path, {"weight": torch.ones(2)}, {"format": "pt"}),
    "safetensors without metadata": lambda path: write(path, {"weight": torch.ones(2)}, None),
    "gzip bomb": lambda path: path.write_bytes(gzip.compress(bytes(80 << 20))),
    "header that is not JSON": lambda path: write(path, {}, {"zq": "{"}),
    "header that is a list": lambda path: write(path, {}, {"zq": "[1]"}),
    "header without a program": lambda path: write(path, {}, {"zq": '{"version": 1}'}),
    "deep header": lambda path: write(path, {}, {"zq": "[" * 100_000}),
    "bfloat16": lambda path: write(
        path,
        {"x": torch.ones(2, dtype=torch.bfloat16)},
        {"zq": '{"version": 1, "program": {}, "sha256": ""}'},
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.zq"
    FOREIGN[kind](path)
    with pytest.raises(InputError) as error:
        load_program(path)
    sentence(error, path)


def test_a_lazy_program_reads_its_weights_anew(saved: Path) -> None:
    lazy, metadata, extra = load_program(saved, lazy=True)
    eager, *others = load_program(saved)
    assert metadata == others[0] and torch.equal(extra["filters"], others[1]["filters"])
    first, second = (next(iter(lazy.operators)).weight for _ in range(2))
    assert first is not second and torch.equal(first, second)
    for _ in range(2):
        assert torch.equal(results(lazy), results(eager))


def test_no_room_to_unpack_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zqlib.integer.stored._unpack", full)
    with pytest.raises(InputError, match="temporary folder .*No space left.*TMPDIR") as error:
        load_program(saved)
    sentence(error, saved)


def tampered(
    saved: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]
) -> Path:
    """A file with `change` applied to its header and tensors, and a checksum that fits."""
    tensors, metadata = read(saved)
    header = json.loads(metadata["zq"])
    change(header, tensors)
    header["sha256"] = storage._digest(header["program"], tensors)
    return write(path, tensors, {"zq": json.dumps(header, sort_keys=True)})


def test_tampering_helper_itself_changes_nothing(saved: Path, tmp_path: Path) -> None:
    path = tampered(saved, tmp_path / "same.zq", lambda header, tensors: None)
    assert path.read_bytes() == saved.read_bytes()


def test_other_version_is_refused_by_its_number(saved: Path, tmp_path: Path) -> None:
    path = tampered(saved, tmp_path / "a.zq", lambda header, _: header.update(version=1))
    with pytest.raises(InputError, match="format version 1, this zqlib reads version 5") as error:
        load_program(path)
    sentence(error, path)


@pytest.mark.parametrize("part", ["type", "shape", "name"])
def test_checksum_covers_what_describes_a_tensor(part: str, saved: Path, tmp_path: Path) -> None:
    tensors, metadata = read(saved)
    filters = tensors.pop("extra.filters")
    if part == "type":
        tensors["extra.filters"] = filters.view(torch.int32)
    elif part == "shape":
        tensors["extra.filters"] = filters.reshape(4, 3)
    else:
        tensors["extra.other"] = filters
    path = write(tmp_path / "a.zq", tensors, metadata)
    with pytest.raises(InputError, match="checksum") as error:
        load_program(path)
    sentence(error, path)


def operator(header: dict[str, Any], index: int) -> dict[str, Any]:
    entry: dict[str, Any] = header["program"]["operators"][index]
    return entry


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], object]] = {
    "overflowing bias": lambda _, t: t["block0.conv1.bias"].fill_(2**31 - 1),
    "bits 9": lambda h, _: operator(h, 0).update(weight_bits=9),
    "bits 1": lambda h, _: operator(h, 0).update(weight_bits=1),
    "bits 8.0": lambda h, _: operator(h, 0).update(weight_bits=8.0),
    "bits of text": lambda h, _: operator(h, 0).update(weight_bits="8"),
    "other bits": lambda h, _: operator(h, 0).update(weight_bits=4),
    "group of text": lambda h, _: operator(h, 0).update(group_size="8"),
    "enormous group": lambda h, _: operator(h, 0).update(group_size=2**40, weight_bits=4),
    "group without sub-scales": lambda h, _: operator(h, 0).update(group_size=2),
    "other shape": lambda h, _: operator(h, 0).update(shape=[8, 1, 4]),
    "negative shape": lambda h, _: operator(h, 0).update(shape=[-8, -1, 5]),
    "shape beyond int64": lambda h, _: operator(h, 0).update(shape=[2**40, 2**40, 1]),
    "shape of two": lambda h, _: operator(h, 0).update(shape=[8, 5]),
    "unknown operator": lambda h, _: operator(h, 0).update(op="eval"),
    "unknown field": lambda h, _: operator(h, 0).update(surprise=1),
    "no field": lambda h, _: operator(h, 0).pop("stride"),
    "fractional stride": lambda h, _: operator(h, 0).update(stride=1.5),
    "enormous padding": lambda h, _: operator(h, 0).update(padding=2**40),
    "operator that is a number": lambda h, _: h["program"]["operators"].append(3),
    "operators that are a number": lambda h, _: h["program"].update(operators=3),
    "no operators": lambda h, _: h["program"].update(operators=[]),
    "reads the future": lambda h, _: operator(h, 0).update(input="logits"),
    "name that is a list": lambda h, _: operator(h, 0).update(input=["features"]),
    "unknown container": lambda h, _: h["program"]["tensors"]["features"].__setitem__(1, "int16"),
    "floating bound": lambda h, _: h["program"]["tensors"]["features"].__setitem__(3, 0.5),
    "channels of text": lambda h, _: h["program"]["tensors"]["features"].__setitem__(0, "8"),
    "type of three fields": lambda h, _: h["program"]["tensors"]["features"].pop(),
    "tensors that are a list": lambda h, _: h["program"].update(tensors=[1, 2]),
    "no logits": lambda h, _: h["program"].pop("logits"),
    "metadata that is text": lambda h, _: h["program"].update(metadata="labels"),
    "program that is a list": lambda h, _: h.update(program=[1]),
    "program that is nothing": lambda h, _: h.update(program=None),
    "no weight": lambda _, t: t.pop("block0.conv0.weight"),
    "float bias": lambda _, t: t.update({"block0.conv1.bias": torch.ones(12)}),
    "short weight": lambda _, t: t.update({"block0.conv0.weight": torch.ones(3).byte()}),
    "signed packing": lambda _, t: t.update(
        {"block0.conv0.weight": t["block0.conv0.weight"].view(torch.int8)}
    ),
    "weight -128": lambda _, t: t["block0.conv0.weight"].zero_(),
    "small m": lambda _, t: t["block0.relu.0.m"].fill_(1),
    "e 0": lambda _, t: t["block0.relu.0.e"].zero_(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_program_with_a_fitting_checksum_is_refused(
    kind: str, saved: Path, tmp_path: Path
) -> None:
    path = tampered(saved, tmp_path / "hostile.zq", HOSTILE[kind])
    with pytest.raises(InputError, match="does not hold a valid program") as error:
        load_program(path)
    sentence(error, path)


def test_a_program_is_readable_by_whoever_reads_other_files(tmp_path: Path) -> None:
    save_program(tmp_path / "a.zq", lowered("separable")[0], {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.zq").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_save_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zq"
    path.write_text("older")

    def full_disk(filename: Path, content: bytes) -> None:
        with filename.open("wb") as stream:
            stream.write(content[:4])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_program(path, lowered("separable")[0], {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.zq"]
    assert path.read_text() == "older"


def test_save_onto_a_folder_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.zq"
    target.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save_program(target, lowered("separable")[0], {})
    assert list(tmp_path.iterdir()) == [target]
    assert not list(target.iterdir())


def test_metadata_that_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_program(tmp_path / "a.zq", lowered("separable")[0], {"x": object()})
    assert not list(tmp_path.iterdir())
