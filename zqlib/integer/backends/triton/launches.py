"""Which kernel computes which operator: its constants on the device, its grid and arguments."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zqlib.integer.attention import positions
from zqlib.integer.backends.fusion import Job
from zqlib.integer.backends.tables import function_table
from zqlib.integer.backends.triton import products, rows
from zqlib.integer.operators import (
    Argmax,
    Attention,
    Conv1d,
    Conv2d,
    LayerNorm,
    Operator,
    Positions,
    Product,
    Requantize,
    Sigmoid,
    Swish,
)
from zqlib.integer.program import Program

__all__ = ["Launches"]

# Sizes of blocks, the fastest of those that were tried on an H200.
_TILES = (  # of a product: rows, columns, depth; warps, stages
    (128, 128, 128, 4, 3),
    (64, 64, 64, 4, 3),
    (32, 32, 128, 4, 4),
)
_BUSY = 2  # blocks for every multiprocessor: a larger tile that leaves fewer is slower
_CHANNELS, _BLOCKS, _STEP, _DEPTH = 16, 16, 16, 32  # of a depthwise convolution; 2 stages
_BLOCK = 1024  # elements
_ROWS = 4  # of a LayerNorm
_QUERIES, _KEYS = 16, 64


@dataclass(frozen=True)
class Launches:
    """The launches of a program.

    Attributes:
        program: the program.
        device: where its tensors are.
        processors: multiprocessors of the device, which many small blocks keep busy.
        constants: tensors of every operator, by its name and theirs.
    """

    program: Program
    device: torch.device
    processors: int = 1
    constants: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for operator in self.program.operators:
            for name, value in self._constants_of(operator):
                self.constants[operator.name, name] = value.contiguous().to(self.device)

    def launch(
        self, job: Job, values: Mapping[str, Tensor], lengths: Tensor, frames: int
    ) -> Tensor:
        """Compute what a job writes.

        Args:
            job: of the program.
            values: every tensor that it reads, (batch, frames, channels).
            lengths: (batch,) int64, valid frames of the first of them.
            frames: of the output.
        """
        operator, target = job.operator, self.program.tensors[job.output]
        if isinstance(operator, Positions):
            table = self.constants[operator.name, "table"]
            return positions(replace(operator, table=table), (frames + 1) // 2)
        source = values[operator.reads[0]]
        shape = (len(source), frames, target.channels)
        out = torch.empty(shape, dtype=target.dtype, device=self.device)
        every, blocks = shape[0] * frames, (-(-out.numel() // _BLOCK),)
        match operator:
            case Conv1d() | Conv2d():
                self._convolve(job, values, lengths, out)
            case Requantize():
                terms = self._terms(operator, values)
                products.requantize[blocks](
                    terms, out, out.numel(), shape[2], target.low, target.high, _BLOCK
                )
            case LayerNorm():
                constants = self._take(operator, "m", "e", "rounding", "eps")
                rows.layer_norm[(-(-every // _ROWS),)](
                    source, *constants, out, every, shape[2], target.low, target.high,
                    _ROWS, _power(shape[2]),
                )  # fmt: skip
            case Sigmoid() | Swish():
                table, low = self._table(operator), self.program.tensors[operator.input].low
                rows.look_up[blocks](source, table, out, out.numel(), low, _BLOCK)
            case Product():
                other = values[operator.reads[1]]
                rows.multiply[blocks](source, other, out, out.numel(), _BLOCK)
            case Attention():
                self._attend(operator, values, lengths, out)
            case Argmax():
                rows.argmax[(every,)](source, out, source.shape[2], _power(source.shape[2]))
        return out

    def _convolve(
        self, job: Job, values: Mapping[str, Tensor], lengths: Tensor, out: Tensor
    ) -> None:
        conv, requantize = job.operator, job.requantize
        assert isinstance(conv, Conv1d | Conv2d)
        x = values[conv.input]
        kind = self.program.tensors[job.output]
        scale: tuple[Tensor, ...] | None = None
        terms: tuple[tuple[Tensor, ...], ...] = ()
        table: Tensor | None = None
        if requantize is not None:
            kind = self.program.tensors[requantize.output]
            own = requantize.reads.index(conv.output)
            scale = self._take(requantize, f"m{own}", f"e{own}")
            terms = self._terms(requantize, values, but=conv.output)
        if job.function is not None:
            table = self._table(job.function)
        weight, bias = self._take(conv, "weight", "bias")
        tensors = (x, weight, bias, lengths, scale, terms, table, out)
        batch, frames, channels = x.shape
        _, out_frames, out_channels = out.shape
        if isinstance(conv, Conv1d) and conv.groups > 1:
            grid = -(-out_frames // (_BLOCKS * _STEP)), -(-channels // _CHANNELS), batch
            products.depthwise[grid](
                *tensors, frames, channels, out_frames, weight.shape[2],
                conv.stride, conv.padding, kind.low, kind.high,
                self._offset(conv), _CHANNELS, _BLOCKS, _STEP, _DEPTH, num_stages=2,
            )  # fmt: skip
            return
        taps, planes = conv.weight.shape[2], conv.weight.shape[1]
        if isinstance(conv, Conv1d):
            bands, band_taps, dilation, band_padding = 1, 1, conv.dilation, 0
        else:
            bands, band_taps, dilation, band_padding = conv.bands, taps, 1, conv.padding
        out_planes = conv.weight.shape[0]
        out_bands = out_channels // out_planes
        out_rows = out_frames * out_bands
        rows, columns, depth, warps, stages = self._tile(out_rows, out_planes, batch)
        grid = -(-out_rows // rows), -(-out_planes // columns), batch
        products.convolve[grid](
            *tensors, frames, planes, bands, out_frames, out_planes, out_bands,
            taps, band_taps, conv.stride, dilation, conv.padding, band_padding, kind.low, kind.high,
            self._offset(conv), rows, columns, depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip

    def _tile(self, rows: int, columns: int, batch: int) -> tuple[int, int, int, int, int]:
        """The largest tile of a product that leaves blocks enough for all multiprocessors."""
        for tile in _TILES[:-1]:
            if -(-rows // tile[0]) * -(-columns // tile[1]) * batch >= _BUSY * self.processors:
                return tile
        return _TILES[-1]

    def _attend(
        self, attention: Attention, values: Mapping[str, Tensor], lengths: Tensor, out: Tensor
    ) -> None:
        query, key, value, position = (values[name] for name in attention.reads)
        batch, frames, channels = query.shape
        heads, distances = attention.heads, position.shape[1]
        size = channels // heads
        scores = []
        for keys, name, count, stride in (
            (key, "content_bias", frames, frames * channels),
            (position, "distance_bias", distances, 0),
        ):
            shape = (batch, heads, frames, count)
            scores.append(torch.empty(shape, dtype=torch.int32, device=self.device))
            grid = (-(-frames // _QUERIES), -(-count // _KEYS), batch * heads)
            rows.scores[grid](
                query, keys, *self._take(attention, name), scores[-1],
                frames, count, stride, heads, size, _power(size), _QUERIES, _KEYS,
            )  # fmt: skip
        rows.attend[-(-frames // _QUERIES), heads, batch](
            *scores, value, lengths, *self._take(attention, "scale"), out,
            frames, heads, size, _power(size), _QUERIES, _KEYS,
        )  # fmt: skip

    def _take(self, operator: Operator, *names: str) -> tuple[Tensor, ...]:
        return tuple(self.constants[operator.name, name] for name in names)

    def _table(self, function: Sigmoid | Swish) -> Tensor:
        return self.constants[function.name, "table"]

    def _terms(
        self, requantize: Requantize, values: Mapping[str, Tensor], but: str | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        return tuple(
            (values[name], *self._take(requantize, f"m{index}", f"e{index}"))
            for index, name in enumerate(requantize.reads)
            if name != but
        )

    def _constants_of(self, operator: Operator) -> Iterator[tuple[str, Tensor]]:
        match operator:
            case Conv1d() | Conv2d():
                weight = operator.weight
                bias = torch.zeros(len(weight), dtype=torch.int64)
                if operator.bias is not None:
                    bias += operator.bias
                bias += self._offset(operator) * weight.flatten(1).sum(1, dtype=torch.int64)
                yield "bias", bias.to(torch.int32)  # modulo 2^32, as the kernel's sums
                if isinstance(operator, Conv1d) and operator.groups > 1:
                    yield "weight", _toeplitz(operator)
                else:  # (out, taps, ..., in): the tensor cores read depth side by side
                    yield "weight", weight.movedim(1, -1)
            case Requantize():
                for index, term in enumerate(operator.terms):
                    yield f"m{index}", term.m
                    yield f"e{index}", term.e
            case LayerNorm():
                constants = operator.constants
                shift = constants.e.long()
                yield "m", constants.m
                yield "e", constants.e
                yield "rounding", constants.offset + (torch.ones_like(shift) << (shift - 1))
                yield "eps", torch.tensor([constants.eps])
            case Sigmoid() | Swish():
                yield "table", function_table(operator, self.program.tensors)
            case Positions():
                yield "table", operator.table
            case Attention():
                yield "content_bias", operator.content_bias
                yield "distance_bias", operator.distance_bias
                numbers = (*operator.content, *operator.distance, *operator.exponent)
                yield "scale", torch.cat([number.int() for number in numbers])

    def _offset(self, conv: Conv1d | Conv2d) -> int:
        return 128 if self.program.tensors[conv.input].high > 127 else 0


def _toeplitz(conv: Conv1d) -> Tensor:
    """(channels, _STEP, depth) int8: weights of each of _STEP outputs, see `products.depthwise`."""
    channels, _, taps = conv.weight.shape
    row = conv.stride * torch.arange(_STEP)[:, None] + conv.dilation * torch.arange(taps)
    depth = -(-(int(row.max()) + 1) // _DEPTH) * _DEPTH
    weight = torch.zeros(channels, _STEP, depth, dtype=torch.int8)
    return weight.scatter_(2, row.expand(channels, -1, -1), conv.weight.expand(-1, _STEP, -1))


def _power(size: int) -> int:
    """The next power of two, at least 32: the shortest depth of a product of bytes."""
    return max(32, 1 << (size - 1).bit_length())
