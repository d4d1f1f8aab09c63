"""Compiles the kernels on first use, and loads them.

The library is kept in the user's cache under the digest of everything that it is made of, so a
changed source is compiled anew and an old library is never loaded. Compiling takes some ten
seconds, once. The package itself stays pure Python: it installs and imports without a compiler.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from zqlib.errors import InputError
from zqlib.files import atomic_output, user_cache

__all__ = ["Library", "compiled", "library", "library_path"]

_KERNELS = Path(__file__).parent / "kernels"
# Sums wrap modulo 2^32, as those of the vector instructions do.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fwrapv", "-pthread")
_VNNI = ("f", "bw", "dq", "vl", "vnni")
_X86_64 = {
    # GCC would keep products of the next iteration, for which there are no registers.
    "avx2.cpp": ("-mavx2", "-fno-predictive-commoning"),
    "avx_vnni.cpp": ("-mavx2", "-mavxvnni"),
    "avx512_vnni.cpp": (*(f"-mavx512{part}" for part in _VNNI), "-mprefer-vector-width=512"),
}
_SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": _X86_64,
    "AMD64": _X86_64,
    "aarch64": {"neon_dot.cpp": ("-march=armv8.2-a+dotprod",)},
}
"""With the flags of their own, by the name that Python has for a machine."""


class Library:
    """The C interface of the compiled kernels; see `kernels/library.cpp`."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        self._lanes, self._panel_width = loaded.zq_lanes, loaded.zq_panel_width
        self._depth, self._offset = loaded.zq_depth, loaded.zq_offset
        self._scratch_bytes, self._run = loaded.zq_scratch_bytes, loaded.zq_run
        for property_ in (self._lanes, self._panel_width, self._depth, self._offset):
            property_.argtypes = [ctypes.c_char_p]
        self._scratch_bytes.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
        self._scratch_bytes.restype = ctypes.c_int64
        self._run.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        self._run.restype = None

    def lanes(self, instruction_set: str) -> int:
        """int32 lanes of a vector; 0 where the processor lacks the instruction set."""
        return int(self._lanes(instruction_set.encode()))

    def panel_width(self, instruction_set: str) -> int:
        """Output channels of a panel of weights."""
        return int(self._panel_width(instruction_set.encode()))

    def depth(self, instruction_set: str) -> int:
        """Weights of an output channel that its dot product adds to a lane."""
        return int(self._depth(instruction_set.encode()))

    def offset(self, instruction_set: str) -> int:
        """What its dot product takes off every byte of activations."""
        return int(self._offset(instruction_set.encode()))

    def scratch_bytes(self, instruction_set: str, step: int, threads: int) -> int:
        """Memory that the step at an address needs besides its tensors."""
        return int(self._scratch_bytes(instruction_set.encode(), step, threads))

    def run(self, instruction_set: str, steps: int, count: int, threads: int) -> None:
        """Run `count` steps that lie at an address."""
        self._run(instruction_set.encode(), steps, count, threads)


@cache
def library() -> Library:
    """The kernels, compiled if need be.

    Raises:
        InputError: there is no C++ compiler, it fails, or the cache cannot be written.
    """
    path = compiled()
    try:
        return Library(path)
    except OSError as error:
        raise InputError(
            f"The compiled kernels {path} cannot be loaded ({error}); delete the file."
        ) from error


def compiled() -> Path:
    """The library's file, made if need be; see `library`."""
    path = library_path()
    if not path.is_file():
        with atomic_output(path) as temporary:
            _compile(temporary)
    return path


def library_path() -> Path:
    """Where the library of these sources lies, or will lie."""
    digest = hashlib.sha256(repr((_compiler(), _FLAGS, _sources(), platform.machine())).encode())
    for path in sorted(_KERNELS.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return user_cache("kernels") / f"{digest.hexdigest()[:16]}.so"


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


def _sources() -> dict[str, tuple[str, ...]]:
    """What is compiled for this machine, with flags."""
    common = dict.fromkeys(("library.cpp", "team.cpp", "portable.cpp"), ())
    return common | _SOURCES.get(platform.machine(), {})


def _compile(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        objects = {Path(folder, f"{name}.o"): (name, flags) for name, flags in _sources().items()}
        _call(
            [*_compiler(), *_FLAGS, *flags, "-c", str(_KERNELS / name), "-o", str(path)]
            for path, (name, flags) in objects.items()
        )
        link = [*_compiler(), "-shared", "-pthread", *map(str, objects), "-o", str(target)]
        _call([link])


def _call(commands: Iterable[list[str]]) -> None:
    """Run commands side by side.

    Raises:
        InputError: one of them cannot be started or fails.
    """
    try:
        started = [
            subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for c in commands
        ]
    except OSError as error:
        raise InputError(
            f"The engine cpu compiles its kernels with {_compiler()[0]!r}, which cannot be run "
            f"({error.strerror}); install GCC 11, Clang 12 or later, or name one in CXX."
        ) from error
    said = [process.communicate()[1] for process in started]
    for process, errors in zip(started, said, strict=True):
        if process.returncode:
            first = next((line for line in errors.splitlines() if "error" in line), errors[:200])
            raise InputError(
                f"The engine cpu could not compile its kernels with {_compiler()[0]!r} "
                f"({first.strip()}); name GCC 11, Clang 12 or later in CXX."
            )
