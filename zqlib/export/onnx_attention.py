"""Integer attention with relative positions, in ONNX; heads are an axis of their own."""

import torch
from onnx import TensorProto
from torch import Tensor

from zqlib.export.onnx_builder import GraphBuilder
from zqlib.export.onnx_functions import DOMAIN
from zqlib.integer.operators import Attention, Positions

__all__ = ["attention", "positions", "relative_shift", "valid_frames"]

_INT32 = torch.iinfo(torch.int32)


def valid_frames(graph: GraphBuilder, frames: str, lengths: str) -> str:
    """(batch, 1, frames) bool: which of so many frames, int64 (1,), count."""
    start, step = graph.constant(0, "start"), graph.constant(1, "step")
    frame = graph.add("Range", start, graph.reshape(frames), step)
    return graph.add("Less", frame, graph.reshape(lengths, -1, 1, 1), output="valid")


def positions(graph: GraphBuilder, operator: Positions, value: str) -> str:
    """Rows for all distances between the frames of `value`: (1, channels, 2 * frames - 1) int8.

    A row is the table's of |distance|, its sines negated where the distance is negative.
    """
    one, step = graph.constant(1, "one"), graph.constant(-1, "step")
    frames = graph.reshape(graph.frames(value))
    first, end = graph.add("Sub", frames, one), graph.add("Neg", frames)
    distance = graph.add("Range", first, end, step, output="distance")
    table = graph.constant(operator.table.t(), f"{operator.name}.table")
    rows = graph.add("Gather", table, graph.add("Abs", distance), axis=1)
    future = graph.add("Less", distance, graph.constant(0, "zero"))
    even = torch.arange(operator.table.shape[1])[:, None] % 2 == 0
    negative = graph.add("And", graph.constant(even, f"{operator.name}.sines"), future)
    signed = graph.add("Where", negative, graph.add("Neg", rows), rows)
    return graph.add("Unsqueeze", signed, graph.constant([0], "axis"), output=operator.output)


def attention(graph: GraphBuilder, operator: Attention, reads: list[str], valid: str) -> str:
    """The accumulator of an attention, (batch, channels, frames) int32.

    Args:
        graph: what to append to.
        operator: the constants.
        reads: query, key, value and positions, (batch or 1, channels, columns) int8.
        valid: (batch, 1, frames) bool, the keys that are attended to.
    """
    channels, heads, name = operator.content_bias.shape[0], operator.heads, operator.name
    frames = graph.frames(reads[0])
    query, key, value, position = (
        graph.reshape(read, 0, heads, channels // heads, -1) for read in reads
    )
    rows = _transpose(graph, query)
    content = _biased_product(graph, rows, key, operator.content_bias, heads, f"{name}.content")
    by_distance = _biased_product(
        graph, rows, position, operator.distance_bias, heads, f"{name}.distance"
    )
    distance = relative_shift(graph, by_distance, frames)
    total = graph.add(
        "Add",
        _requantize(graph, content, operator.content, f"{name}.content"),
        _requantize(graph, distance, operator.distance, f"{name}.distance"),
    )
    limits = graph.constant(_INT32.min, "low"), graph.constant(_INT32.max, "high")
    scores = graph.cast(graph.add("Clip", total, *limits), TensorProto.INT32, f"{name}.scores")
    m, e = operator.exponent
    weights = graph.add(
        "SoftmaxWeights",
        scores,
        graph.constant(m, f"{name}.m"),
        graph.constant(e, f"{name}.e"),
        graph.reshape(valid, 0, 1, 1, -1),
        domain=DOMAIN,
        output=f"{name}.weights",
    )
    # both of uint8: times int8, products saturate in ONNX Runtime where there is no VNNI
    none, middle = (graph.constant(torch.tensor(x, dtype=torch.uint8), "zero") for x in (0, 128))
    wide = (graph.cast(x, TensorProto.INT32) for x in (value, middle))
    unsigned = graph.cast(graph.add("Add", *wide), TensorProto.UINT8)
    sums = graph.add("MatMulInteger", weights, _transpose(graph, unsigned), none, middle)
    context = graph.add("WeightedMean", sums, weights, domain=DOMAIN)
    return graph.reshape(_transpose(graph, context), 0, channels, -1, output=operator.output)


def relative_shift(graph: GraphBuilder, scores: str, frames: str) -> str:
    """From scores by distance to scores by frame: (..., n, 2 * n - 1) to (..., n, n).

    Column c of row i belongs to the distance n - 1 - c. With one more column in front, a row has
    2 * n entries; without the first n of all, and in rows of 2 * n - 1, entry (i, j) is that of row
    i at the distance i - j.

    Args:
        graph: what to append to.
        scores: of four axes.
        frames: n, int64 (1,).
    """
    one = graph.constant([1], "one")
    padded = graph.add("Pad", scores, graph.constant([0, 0, 0, 1, 0, 0, 0, 0], "pads"))
    keep = graph.constant([0, 0, -1], "shape")
    narrow = graph.add("Reshape", padded, graph.add("Concat", keep, frames, axis=0))
    cut = graph.slice(narrow, one, graph.constant([_INT32.max], "end"), axis=2)
    columns = graph.add("Sub", graph.add("Add", frames, frames), one)
    wide = graph.add("Reshape", cut, graph.add("Concat", keep, columns, axis=0))
    return graph.slice(wide, graph.constant([0], "start"), frames, axis=3)


def _biased_product(
    graph: GraphBuilder, rows: str, columns: str, bias: Tensor, heads: int, name: str
) -> str:
    """(rows + bias) @ columns; the bias adds one number to each column."""
    product = graph.add("MatMulInteger", rows, columns)
    wide = graph.cast(columns, TensorProto.INT32)
    weighted = graph.add("Mul", wide, graph.constant(bias.view(heads, -1, 1), f"{name}.bias"))
    share = graph.add("ReduceSum", weighted, graph.constant([2], "axis"))
    return graph.add("Add", product, share, output=name)


def _requantize(graph: GraphBuilder, value: str, dyadic: tuple[Tensor, Tensor], name: str) -> str:
    m, e = (graph.constant(x, f"{name}.{part}") for x, part in zip(dyadic, "me", strict=True))
    return graph.add("Requantize", value, m, e, domain=DOMAIN)


def _transpose(graph: GraphBuilder, value: str) -> str:
    """The last two of four axes swapped."""
    return graph.add("Transpose", value, perm=[0, 1, 3, 2])
