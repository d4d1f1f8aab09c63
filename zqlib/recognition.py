"""Speech to text with either kind of model, behind one small interface."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from zqlib.audio import MelFrontEnd, audio_features, pad_features
from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.evaluation import (
    Hypothesis,
    decode_batch,
    hypothesis_line,
    parse_hypothesis,
)
from zqlib.integer import reference
from zqlib.integer.backends import cpu, triton
from zqlib.models import CTCModel, load_model
from zqlib.quantized_model import QuantizedModel, load_quantized

__all__ = [
    "Engine",
    "FloatRecogniser",
    "IntegerRecogniser",
    "Recogniser",
    "load_recogniser",
    "recognise_manifest",
    "transcribe",
]

Engine = Literal["float", "reference", "cpu", "triton"]


class Recogniser(Protocol):
    """Turns batches of features into token ids."""

    @property
    def name(self) -> str:
        """Name of the float model it comes from."""

    @property
    def engine(self) -> str:
        """What computes: `float` (torch) or the backend of an integer program."""

    @property
    def front_end(self) -> MelFrontEnd:
        """Waveform to features."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Text of each class; the blank comes after the last."""

    def tokens(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, n_mels, frames) float32 and lengths to token ids (batch, frames'), lengths."""


class FloatRecogniser:
    """The float model."""

    engine = "float"

    def __init__(self, model: CTCModel) -> None:
        self.model = model
        self.name, self.front_end, self.labels = model.name, model.front_end, model.labels

    @torch.no_grad()
    def tokens(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recogniser.tokens`."""
        log_probs, lengths = self.model.network(features, lengths)
        return log_probs.argmax(-1), lengths


class IntegerRecogniser:
    """An integer program on a named backend; a backend is never replaced by another.

    Args:
        model: the program with its front-end and labels.
        engine: `reference` (torch integer tensors), `cpu` (compiled kernels) or `triton` (an NVIDIA
            GPU).
        threads: of the engine `cpu`; None for as many as torch uses.

    Raises:
        InputError: an engine that does not run integer programs, `cpu` where its kernels cannot be
            compiled, or `triton` where there is no GPU for it.
    """

    def __init__(
        self, model: QuantizedModel, engine: Engine = "reference", threads: int | None = None
    ) -> None:
        run: Callable[[Tensor, Tensor], reference.ProgramOutput]
        self._device = torch.device("cpu")
        if engine == "reference":
            run = partial(reference.run, model.program)
        elif engine == "cpu":
            count = torch.get_num_threads() if threads is None else threads
            run = cpu.Executor(model.program, count).run
        elif engine == "triton":
            executor = triton.Executor(model.program)
            run, self._device = executor.run, executor.device
        else:
            raise InputError(
                f"The engine {engine!r} does not run integer programs; "
                "use reference, cpu or triton."
            )
        self._run = run
        self.model, self.engine = model, engine
        self.name, self.front_end, self.labels = model.name, model.front_end, model.labels

    def tokens(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recogniser.tokens`."""
        quantized = self.model.quantize_features(features.to(self._device))
        output = self._run(quantized, lengths)
        return output.tokens.cpu(), output.lengths


def load_recogniser(
    path: Path, engine: str | None = None, threads: int | None = None
) -> Recogniser:
    """Load a `.nemo` checkpoint (float) or a `.zq` program (integer).

    Args:
        path: the file; its suffix tells which of the two it is.
        engine: None for `float` or `reference`, whichever fits the file.
        threads: of the engine `cpu`; None for as many as torch uses.

    Raises:
        InputError: unknown suffix, an engine that does not run this kind of file, or a bad file.
    """
    if engine is not None and engine not in get_args(Engine):
        raise InputError(f"The engine {engine!r} is unknown; use {' or '.join(get_args(Engine))}.")
    if threads is not None and engine != "cpu":
        raise InputError("The number of threads belongs to the engine cpu; name it too.")
    if path.suffix == ".nemo":
        if engine not in (None, "float"):
            raise InputError(f"{path} is a float checkpoint: quantize it before using {engine}.")
        return FloatRecogniser(load_model(path))
    if path.suffix == ".zq":
        if engine == "float":
            raise InputError(f"{path} is an integer program; give the .nemo file for float.")
        model = load_quantized(path, lazy=engine == "cpu")
        return IntegerRecogniser(model, cast(Engine, engine or "reference"), threads)
    raise InputError(f"{path} is neither a .nemo checkpoint nor a .zq program.")


def transcribe(
    recogniser: Recogniser,
    paths: Sequence[Path],
    *,
    batch_size: int = 1,
    resample: bool = False,
    progress: bool = False,
) -> Iterator[str]:
    """Recognise audio files, in order.

    Args:
        recogniser: the model.
        paths: audio files.
        batch_size: utterances that run together; integer results do not depend on it.
        resample: convert audio of another rate instead of refusing it.
        progress: show a bar on standard error.

    Yields:
        The text of each file.

    Raises:
        InputError: bad audio.
    """
    if batch_size < 1:
        raise InputError(f"The batch size is {batch_size}; give at least 1.")
    pad_to = recogniser.front_end.config.pad_to
    with tqdm(total=len(paths), desc="recognise", unit="utt", disable=not progress) as bar:
        for start in range(0, len(paths), batch_size):
            utterances = [
                audio_features(path, recogniser.front_end, resample=resample)
                for path in paths[start : start + batch_size]
            ]
            features, lengths = pad_features(utterances, pad_to)
            yield from decode_batch(*recogniser.tokens(features, lengths), recogniser.labels)
            bar.update(len(utterances))


def recognise_manifest(
    recogniser: Recogniser,
    manifest: Path,
    *,
    batch_size: int = 1,
    partial: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> list[Hypothesis]:
    """Recognise every utterance of a manifest, or those of one shard of it.

    Args:
        recogniser: the model.
        manifest: a NeMo manifest; utterances are named by their path relative to its folder.
        batch_size: utterances that run together.
        partial: a file to which hypotheses are appended as they come; one left by an interrupted
            run of the same model on the same data is continued. What is of other utterances in it
            is replaced; that the model was the same is the caller's care. Of two processes with
            the same file, the second waits for the first.
        shard: i of n: part i, from 0, of n parts of nearly equal length.
        progress: show a bar on standard error.

    Raises:
        InputError: a bad manifest or bad audio.
    """
    index, count = shard
    utterances = read_manifest(manifest)
    utterances = utterances[
        len(utterances) * index // count : len(utterances) * (index + 1) // count
    ]
    said = [
        (Path(os.path.relpath(u.audio_path, manifest.parent)).as_posix(), u.text)
        for u in utterances
    ]
    with ExitStack() as stack:
        done: list[Hypothesis] = []
        if partial:
            partial.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(partial.open("a+b", buffering=0))
            fcntl.flock(stream, fcntl.LOCK_EX)  # given back when the process ends, however it does
            done = _read_partial(stream, said)
        rest = utterances[len(done) :]
        texts = transcribe(
            recogniser, [u.audio_path for u in rest], batch_size=batch_size, progress=progress
        )
        for (name, words), text in zip(said[len(done) :], texts, strict=True):
            done.append(Hypothesis(name, words, text))
            if partial:
                stream.write(hypothesis_line(done[-1]).encode())
    return done


def _read_partial(stream: FileIO, said: Sequence[tuple[str, str]]) -> list[Hypothesis]:
    """Stored hypotheses of the first utterances; none, and an empty file, if any line is of others.

    A last line that an interruption cut off is removed.
    """
    stream.seek(0)
    *lines, rest = stream.read().split(b"\n")
    try:
        done = [parse_hypothesis(line.decode()) for line in lines]
    except (InputError, UnicodeDecodeError):
        done = []
    if [(h.utterance, h.reference) for h in done] != said[: len(done)]:
        done = []
    stream.truncate(stream.tell() - len(rest) if done else 0)
    return done
