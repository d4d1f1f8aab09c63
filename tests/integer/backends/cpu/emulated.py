"""The kernels of an AArch64 processor, compiled by a cross compiler and run by QEMU."""

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from zqlib.integer.backends.cpu import Executor
from zqlib.integer.backends.cpu import arguments as c
from zqlib.integer.backends.cpu import library as module
from zqlib.integer.backends.cpu.executor import _Plan
from zqlib.integer.backends.cpu.steps import Extent

COMPILER, _EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [tool for tool in (COMPILER, _EMULATOR) if not shutil.which(tool)]
"""Of Debian's packages g++-aarch64-linux-gnu and qemu-user."""

_BASE, _SIZE = 1 << 36, 1 << 28  # where the emulated program has the shared memory


def cross_compiled() -> Path:
    """The library that the package builds on AArch64."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("CXX", COMPILER)
        context.setattr(module.platform, "machine", lambda: "aarch64")
        return module.compiled()


class Emulator:
    """Stands in for `Library`; steps lie in its own memory.

    Args:
        folder: for a program and its memory.
        processor: a name that QEMU knows.
    """

    def __init__(self, folder: Path, processor: str) -> None:
        library, program, memory = cross_compiled(), folder / "program", folder / "memory"
        source = Path(__file__).with_suffix(".cpp")
        command = [COMPILER, "-std=c++17", str(source), str(library), "-o", str(program)]
        subprocess.run(command, check=True)
        with memory.open("w+b") as stream:
            stream.truncate(_SIZE)
            self.memory = np.frombuffer(mmap.mmap(stream.fileno(), _SIZE), np.uint8)
        run = [_EMULATOR, "-L", "/usr/aarch64-linux-gnu", "-cpu", processor]
        self._process = subprocess.Popen(
            [*run, str(program), str(memory), str(_BASE), str(_SIZE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def close(self) -> None:
        """End the program."""
        self._process.communicate()

    def lanes(self, instruction_set: str) -> int:
        return self._ask("lanes", instruction_set)

    def panel_width(self, instruction_set: str) -> int:
        return self._ask("panel_width", instruction_set)

    def depth(self, instruction_set: str) -> int:
        return self._ask("depth", instruction_set)

    def offset(self, instruction_set: str) -> int:
        return self._ask("offset", instruction_set)

    def scratch_bytes(self, instruction_set: str, step: int, threads: int) -> int:
        """Of a step of this process; nothing is read that its arguments point to."""
        given = c.Step.from_address(step)
        kind = c.KINDS[given.kind]
        own = c.Step(given.kind, _BASE + ctypes.sizeof(c.Step))
        content = bytes(own) + bytes(kind.from_address(given.arguments))
        self.memory[: len(content)] = np.frombuffer(content, np.uint8)
        return self._ask("scratch_bytes", instruction_set, _BASE, 1, threads)

    def run(self, instruction_set: str, steps: int, count: int, threads: int) -> None:
        """Steps at an offset of the memory."""
        self._ask("run", instruction_set, _BASE + steps, count, threads)

    def _ask(self, what: str, instruction_set: str, *numbers: int) -> int:
        address, count, threads = numbers or (0, 0, 0)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{what} {instruction_set} {address} {count} {threads}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class EmulatedExecutor(Executor):
    """Copies all that the steps of a run point to into the emulator's memory, and back."""

    emulator: Emulator

    def _plan(self, extent: Extent) -> _Plan:
        self.plan = super()._plan(extent)
        return self.plan

    def _prepare(self, features: Tensor, lengths: Tensor) -> _Plan:
        self.plan = super()._prepare(features, lengths)
        return self.plan

    def _run(self, steps: ctypes.Array[c.Step]) -> None:
        structs, builder, constant = self.plan.owned
        written = [self._arena.numpy(), *constant.values()]
        read = [self.plan.lengths, *self._constants.arrays.values()]
        pointing = [steps, *chain(*structs), *filter(len, builder.terms)]
        memory, places, end = self.emulator.memory, {}, 0
        for owner in (*written, *read, *pointing):
            values = np.frombuffer(owner, np.uint8)
            places[values.ctypes.data] = (end, len(values))
            memory[end : end + len(values)] = values
            end += (len(values) + 256 + 63) // 64 * 64
        for owner in pointing:
            place, _ = places[ctypes.addressof(owner)]
            for pointer in _pointers(owner):
                word = memory[place + pointer : place + pointer + 8].view(np.uint64)
                word[0] = _moved(int(word[0]), places)
        first, _ = places[ctypes.addressof(steps)]
        self.emulator.run(self.instruction_set, first, len(steps), self.threads)
        for owner in written:
            values = np.frombuffer(owner, np.uint8)
            place, size = places[values.ctypes.data]
            values[...] = memory[place : place + size]


def _pointers(value: ctypes.Array | ctypes.Structure) -> Iterator[int]:
    """Offsets of the pointers in a struct, or in an array of structs."""
    if isinstance(value, ctypes.Array):
        size = ctypes.sizeof(value._type_)
        for index, element in enumerate(value):
            yield from (index * size + offset for offset in _pointers(element))
        return
    for name, kind in value._fields_:
        offset = getattr(type(value), name).offset
        if kind is ctypes.c_void_p:
            yield offset
        elif issubclass(kind, ctypes.Structure):
            yield from (offset + inner for inner in _pointers(getattr(value, name)))


def _moved(address: int, places: dict[int, tuple[int, int]]) -> int:
    """Where the emulator has an address; null if nothing that is copied lies there."""
    for start, (place, size) in places.items():
        if start <= address < start + size:
            return _BASE + place + address - start
    return 0
