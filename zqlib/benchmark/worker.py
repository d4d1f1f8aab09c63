"""One engine that runs when it is told to: in a process of its own, or on a GPU from this one.

A process of its own, bound to its processors, because the thread pools of the engines get into each
other's way and memory is only known per process. Between its turns it waits on a pipe and uses no
processor. Engines of a GPU have neither trouble.
"""

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Self

import torch

from zqlib.benchmark import machine
from zqlib.benchmark.engines import Inputs, Tokens, load_engine
from zqlib.errors import InputError, ZqError

__all__ = ["GpuWorker", "Worker", "WorkerError"]


class WorkerError(ZqError):
    """The process of an engine failed."""


@dataclass(frozen=True)
class Loaded:
    """What a worker says once it is ready.

    Attributes:
        load_ms: from the file to a model that can run.
        first_run_ms: of the first run.
        tokens: of the first run, (batch, frames').
    """

    load_ms: float
    first_run_ms: float
    tokens: Tokens


class Worker:
    """A context that holds the process of one engine.

    Args:
        inputs: what the engine loads.
        cpus: to bind it to.

    Raises:
        InputError: the engine's library is missing, or the engine refuses its model.
        WorkerError: the process ended without a word, killed for want of memory perhaps.
    """

    def __init__(self, inputs: Inputs, cpus: Sequence[int]) -> None:
        self.system = inputs.system
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, inputs, cpus), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.loaded: Loaded = self._receive()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def process_id(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def measure(self, repeats: int, warm_up: bool = True) -> list[float]:
        """Run `repeats` times, in ms; before them once unmeasured, for caches and threads."""
        return list(self._ask((repeats, warm_up)))

    def memory_mb(self) -> float:
        """Peak of the memory since the model began to load, beyond what the process held before."""
        return float(self._ask("memory"))

    def layers(self) -> dict[str, int]:
        """See `zqlib.benchmark.engines.Engine`; may need memory of its own."""
        return dict(self._ask("layers"))

    def _ask(self, question: Any) -> Any:
        self._pipe.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            self._process.join(1)
            raise WorkerError(
                f"The process of {self.system} ended (status {self._process.exitcode}), perhaps "
                "for want of memory; compare fewer engines at a time."
            ) from error
        if isinstance(answer, ZqError):
            raise answer
        return answer

    def _end(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class GpuWorker:
    """An engine of the GPU, in this process; what it asks of a context is to be let go at the end.

    Args:
        inputs: what the engine loads.

    Raises:
        InputError: the engine refuses its model.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.system = inputs.system
        load = load_engine(inputs)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start_s = time.perf_counter()
        self._engine = load()
        load_ms = 1e3 * (time.perf_counter() - start_s)
        first_run_ms = _run_ms(self._engine.run)
        tokens = self._engine.tokens(self._engine.run())
        self.loaded = Loaded(load_ms, first_run_ms, tokens)
        self._memory_mb = (torch.cuda.max_memory_allocated() - before) / 1e6

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del self._engine

    @property
    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    def measure(self, repeats: int, warm_up: bool = True) -> list[float]:
        """See `Worker.measure`."""
        return _turn_ms(self._engine.run, repeats, warm_up)

    def memory_mb(self) -> float:
        """Peak of the GPU's memory that torch gave to it while it loaded and first ran."""
        return self._memory_mb

    def layers(self) -> dict[str, int]:
        """See `zqlib.benchmark.engines.Engine`."""
        return self._engine.layers()


def _serve(pipe: Connection, inputs: Inputs, cpus: Sequence[int]) -> None:
    """What the process does: load, say so, and answer until the pipe is closed."""
    machine.bind(cpus)
    try:
        load = load_engine(inputs)
        gc.collect()
        machine.forget_peak_rss()
        before_mb = machine.rss_mb()
        start_s = time.perf_counter()
        engine = load()
        load_ms = 1e3 * (time.perf_counter() - start_s)
        gc.disable()
        start_s = time.perf_counter()
        result = engine.run()
        first_run_ms = 1e3 * (time.perf_counter() - start_s)
        pipe.send(Loaded(load_ms, first_run_ms, engine.tokens(result)))
        while True:
            match pipe.recv():
                case "memory":
                    pipe.send(machine.rss_mb(peak=True) - before_mb)
                case "layers":
                    pipe.send(engine.layers())
                case (repeats, warm_up):
                    pipe.send(_turn_ms(engine.run, repeats, warm_up))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except ZqError as error:
        pipe.send(error)
    except Exception as error:  # an engine's own exceptions have no common base
        pipe.send(InputError(f"The engine {inputs.system} failed ({error}); leave it out."))


def _turn_ms(run: Any, repeats: int, warm_up: bool) -> list[float]:
    if warm_up:
        run()
    return [_run_ms(run) for _ in range(repeats)]


def _run_ms(run: Any) -> float:
    start_ns = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start_ns) / 1e6
