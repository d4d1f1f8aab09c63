"""Weights of a block tuned together, for the least error of what the block hands on.

Rounded one layer at a time, no layer makes up for the errors of another. Here the levels of all
weights of a block move at once, by gradients that pass a rounding as if it were not there, until
what other blocks read of it comes closest to the float model's, activations rounded as well
(block-wise reconstruction: Li et al. 2021, arXiv 2102.05426). Few steps: with more, the error on
the synthetic data goes on falling while that on speech rises again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor
from tqdm import tqdm

from zqlib.models.layers import valid_frames
from zqlib.quantization.calibrate import activation_levels, zero_points
from zqlib.quantization.graph import FloatGraph, Value, execute, joined
from zqlib.quantization.nodes import FloatConv, FloatConv2d, FloatOperator
from zqlib.quantization.patches import weight_rows
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import layer_bits, with_steps

__all__ = ["reconstruct"]

_STEPS = 60
_UTTERANCES = 2  # of a step
_LEARNING_RATE = 0.01  # of a level


def reconstruct(
    graph: FloatGraph,
    rounded: FloatGraph,
    scales: Mapping[str, float],
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    progress: bool = False,
) -> FloatGraph:
    """Tune the weights of a graph on their grid, one block after the other.

    Operators next to each other whose outputs have the same first name (`block3.conv1.out`) are a
    block. One that its tuning does not bring closer to the float model stays as it was.

    Args:
        graph: the folded model.
        rounded: the same, its weights on their grid, from `quantize_weights`.
        scales: of the features and of every activation, from `calibrate`.
        batches: what it was calibrated on: features (batch, channels, frames) float32 and lengths
            (batch,) int64.
        scheme: bits.
        progress: show a bar on standard error.

    Returns:
        `rounded`, with other multiples of the same steps.
    """
    levels, zeros = activation_levels(graph, scheme), zero_points(graph, scales, scheme)

    def activated(name: str, x: Tensor) -> Tensor:
        if name not in levels:
            return x
        (low, high), zero, scale = levels[name], zeros.get(name, 0), scales[name]
        clipped = x.clamp((low - zero) * scale, (high - zero) * scale)
        return clipped + (torch.round(clipped / scale) * scale - clipped).detach()

    features, lengths = joined(batches)
    x = features.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    exact: dict[str, Value] = {graph.input: (x, lengths)}
    actual: dict[str, Value] = {graph.input: (activated(graph.input, x), lengths)}
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(graph.operators, rounded.operators, strict=True))
    done: list[FloatOperator] = []
    with tqdm(total=len(pairs), desc="blocks", disable=not progress) as bar:
        for _, members in groupby(pairs, key=lambda pair: pair[0].output.partition(".")[0]):
            before, after = zip(*members, strict=True)
            later = {name for o in graph.operators[len(done) + len(before) :] for name in o.reads}
            for operator in before:
                exact[operator.output] = execute(operator, [exact[n] for n in operator.reads])
            block = _Block(before, after, later | {graph.logits}, exact, actual, activated, scheme)
            operators = block.tuned(generator)
            with torch.no_grad():
                actual |= block.run(operators, torch.arange(len(features)))
            done += operators
            for name in {*exact} - later:
                exact.pop(name), actual.pop(name, None)
            bar.update(len(before))
    return replace(rounded, operators=tuple(done))


@dataclass(frozen=True, eq=False)
class _Block:
    """Operators of a block before and after rounding, and all that they read.

    Attributes:
        before, after: as in the float graph and in the rounded one.
        handed_on: names of the tensors that are read outside, some of them not of this block.
        exact, actual: what the float model computes, the block itself included, and what the
            rounded one does before the block, by name.
        activated: a tensor, by name, with its activation's rounding.
        scheme: bits.
    """

    before: Sequence[FloatOperator]
    after: Sequence[FloatOperator]
    handed_on: set[str]
    exact: Mapping[str, Value]
    actual: Mapping[str, Value]
    activated: Callable[[str, Tensor], Tensor]
    scheme: QuantScheme

    def run(self, operators: Sequence[FloatOperator], rows: Tensor) -> dict[str, Value]:
        """What operators in the place of the block's make of some of the utterances."""
        values: dict[str, Value] = {}

        def read(name: str) -> Value:
            if name in values:
                return values[name]
            x, lengths = self.actual[name]
            return _some(x, rows), _some(lengths, rows)

        for operator in operators:
            x, lengths = execute(operator, [read(name) for name in operator.reads])
            values[operator.output] = self.activated(operator.output, x), lengths
        return values

    def error(self, operators: Sequence[FloatOperator], rows: Tensor) -> Tensor:
        """Squared errors of the tensors handed on, each over its squares, on valid frames."""
        total = torch.zeros(())
        for name, (x, lengths) in self.run(operators, rows).items():
            if name in self.handed_on:
                valid = valid_frames(x.shape[3], lengths)[:, None, None, :]
                wanted = _some(self.exact[name][0], rows)
                errors, squares = ((y * valid).square().sum() for y in (x - wanted, wanted))
                total = total.to(x.device) + errors / squares.clamp(min=torch.finfo().tiny)
        return total

    def tuned(self, generator: torch.Generator) -> Sequence[FloatOperator]:
        """The operators after rounding, with the levels of their weights moved."""
        grids = {
            index: _Grid.of(before, after, self.scheme)
            for index, (before, after) in enumerate(zip(self.before, self.after, strict=True))
            if isinstance(before, FloatConv | FloatConv2d)
            and isinstance(after, FloatConv | FloatConv2d)
        }
        if not grids:
            return self.after

        def operators() -> list[FloatOperator]:
            return [
                replace(o, weight=grids[index].weight())
                if isinstance(o, FloatConv | FloatConv2d)
                else o
                for index, o in enumerate(self.after)
            ]

        latent = [grid.latent for grid in grids.values()]
        optimizer = torch.optim.Adam(latent, lr=_LEARNING_RATE)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        count = max(len(x) for x, _ in self.exact.values())
        for _ in range(_STEPS):
            rows = torch.randperm(count, generator=generator)[:_UTTERANCES]
            optimizer.zero_grad()
            self.error(operators(), rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
        with torch.no_grad():
            found, everything = operators(), torch.arange(count)
            better = self.error(found, everything) < self.error(self.after, everything)
        return found if better else self.after


def _some(x: Tensor, rows: Tensor) -> Tensor:
    """Some utterances of a tensor; one that is the same for all of them has a single row."""
    return x[rows.to(x.device)] if len(x) > 1 else x


@dataclass(frozen=True, eq=False)
class _Grid:
    """Weights of a convolution between levels.

    Attributes:
        latent: shaped as the weights, float32: the nearest level is the one taken.
        step: alike, between two levels.
        limit: the last level.
    """

    latent: Tensor
    step: Tensor
    limit: int

    @classmethod
    def of(
        cls, before: FloatConv | FloatConv2d, after: FloatConv | FloatConv2d, scheme: QuantScheme
    ) -> "_Grid":
        """From the level that rounding chose, drawn halfway to the weight as it was."""
        conv, step = with_steps(replace(before, weight_bits=after.weight_bits), scheme)
        rows = weight_rows(conv)
        step = step.masked_fill(step == 0, 1.0).expand_as(rows)
        level = torch.round(weight_rows(after) / step)
        latent = level + (rows / step - level).clamp(-1, 1) * 0.48
        shape, limit = before.weight.shape, 2 ** (layer_bits(conv, scheme) - 1) - 1
        return cls(latent.view(shape).float().requires_grad_(), step.view(shape).float(), limit)

    def weight(self) -> Tensor:
        """On the grid; gradients pass."""
        level = self.latent.round().clamp(-self.limit, self.limit)
        return (self.latent + (level - self.latent).detach()) * self.step
