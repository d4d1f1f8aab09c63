"""The `cpu` backend: integer kernels in C++, bit-identical to the reference.

Python plans, C++ computes. Once per program: weights are packed in the order in which the kernels
read them, and requantizations join the convolutions before them (`fusion`, `constants`). Once per
shape of a batch: every tensor gets a place in one block of memory (`arena`), every job a struct
(`steps`). A run is then one call of the library, which is compiled on first use (`library`).
"""

from functools import lru_cache

from torch import Tensor

from zqlib.integer.backends.cpu.executor import INSTRUCTION_SETS, Executor
from zqlib.integer.program import Program
from zqlib.integer.reference import ProgramOutput

__all__ = ["INSTRUCTION_SETS", "Executor", "run"]


def run(program: Program, features: Tensor, lengths: Tensor, threads: int = 1) -> ProgramOutput:
    """Execute a program on the compiled kernels.

    Args:
        program: the program.
        features: (batch, channels, frames), quantized, of the program's input type.
        lengths: (batch,) int64, valid frames of each utterance.
        threads: that share the work.

    Returns:
        Exactly what `zqlib.integer.reference.run` returns.

    Raises:
        InputError: as the reference; or there is no C++ compiler, or a bad number of threads.
    """
    return _executor(program, threads).run(features, lengths)


@lru_cache(maxsize=4)
def _executor(program: Program, threads: int) -> Executor:
    return Executor(program, threads)
