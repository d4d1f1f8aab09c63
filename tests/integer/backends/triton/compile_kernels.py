"""Compiles every kernel for a GPU that need not be there; prints what PTX each became.

A program of its own, because Triton decides when it is imported whether it interprets or compiles.
"""

import json
import sys
from typing import Any

import tiny
import tiny_conformer
import torch
from single import program_of
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from zqlib.integer.backends.fusion import fuse
from zqlib.integer.backends.triton.launches import Launches
from zqlib.integer.nonlinear import exponent_multiplier
from zqlib.integer.operators import Sigmoid
from zqlib.integer.program import Program, TensorType
from zqlib.quantization.scheme import QuantScheme


class NoGPU:
    """What Triton asks of a driver while it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: Any) -> Any:
    def launch(*arguments: Any, **options: int) -> None:
        compiled = kernel.run(*arguments, grid=grid, warmup=True, **options)
        assert compiled.asm["cubin"]  # the assembler took it
        found.setdefault(kernel.fn.__name__, set()).add(compiled.asm["ptx"])

    return launch


def launch_all(program: Program, frames: int) -> None:
    launches = Launches(program, torch.device("cpu"))
    for job in fuse(program):
        kind = (
            type(job.operator),
            getattr(job.operator, "groups", 1) > 1,
            len(job.reads),
            program.tensors[job.reads[0]].dtype,
            type(job.requantize),
            type(job.function),
        )
        if kind not in seen:  # the others differ in numbers alone
            seen.add(kind)
            types = {name: program.tensors[name] for name in job.reads}
            values = {
                name: torch.zeros(1, frames, kind.channels, dtype=kind.dtype)
                for name, kind in types.items()
            }
            launches.launch(job, values, torch.tensor([frames]), frames)


seen: set[tuple[object, ...]] = set()
found: dict[str, set[str]] = {}
driver.set_active(NoGPU())
JITFunction.__getitem__ = compile_only
launch_all(tiny.lowered("dense residual")[0], 40)
network, features = tiny_conformer.network(), tiny_conformer.features()
launch_all(tiny_conformer.lowered(network, features, QuantScheme())[0], 40)
byte = TensorType(8, torch.int8, -128, 127)
sigmoid = Sigmoid("sigmoid", "x", "y", exponent_multiplier(0.05), 127)
launch_all(program_of({"x": byte, "y": byte}, sigmoid), 40)
print(json.dumps({name: sorted(texts) for name, texts in found.items()}))
