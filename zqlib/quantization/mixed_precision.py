"""Weights of different bits: for each layer what costs the logits least, within a budget.

What bits cost is measured, layer by layer: the squared error of the logits on synthetic features
when the weights of this layer alone are rounded to so many bits. Errors of different layers are
taken to add up, and then the choice is a knapsack problem (one width for every layer, the sum of
their sizes within the budget), which an integer program solves to optimality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor
from tqdm import tqdm

from zqlib.errors import InputError
from zqlib.integer.packing import stored_bits
from zqlib.models.layers import valid_frames
from zqlib.quantization.graph import FloatGraph, Value, execute
from zqlib.quantization.nodes import FloatConv, FloatConv2d, FloatOperator
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantization.weight_grid import on_grid

__all__ = ["allocate", "bits_by_layer", "sensitivities", "with_layer_bits"]

_WIDTHS = range(2, 9)
_UTTERANCES = 2  # they rank the layers as all do, and every width of every layer runs them


def with_layer_bits(
    graph: FloatGraph,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    progress: bool = False,
) -> FloatGraph:
    """Give every layer the bits that a scheme names for it, or that its budget leads to.

    Args:
        graph: the folded model.
        batches: features (batch, channels, frames) float32 and lengths (batch,) int64.
        scheme: `weight_bits`, `weight_budget`, `budget_of` and `layer_bits`.
        progress: show a bar on standard error.

    Raises:
        InputError: the scheme names a layer that the graph has not, or its budget is too small.
    """
    chosen = scheme.layer_bits
    if unknown := sorted(set(chosen) - {conv.name for conv in _layers(graph)}):
        raise InputError(
            f"The scheme has bits for {unknown[0]!r}, a layer that this model has not; "
            "give it the scheme of this model."
        )
    if not chosen and scheme.weight_budget is not None:
        errors, places = sensitivities(graph, batches, scheme, progress)
        if scheme.budget_of == "size":
            places = dict.fromkeys(places, 1)
        sizes = {
            conv.name: [places[conv.name] * _bits(conv, bits, scheme) for bits in _WIDTHS]
            for conv in _layers(graph)
        }
        weights = sum(conv.weight.numel() * places[conv.name] for conv in _layers(graph))
        indices = allocate(errors, sizes, scheme.weight_budget * weights)
        if indices is None:
            least = sum(min(row) for row in sizes.values()) / weights
            raise InputError(
                f"No layer has fewer than {_WIDTHS[0]} bits, which are {least:.2f} with their "
                f"sub-scales: {scheme.weight_budget} on average cannot be had; allow more."
            )
        chosen = {name: _WIDTHS[index] for name, index in indices.items()}
    return replace(
        graph,
        operators=tuple(
            replace(operator, weight_bits=chosen[operator.name])
            if operator.name in chosen and isinstance(operator, FloatConv | FloatConv2d)
            else operator
            for operator in graph.operators
        ),
    )


def sensitivities(
    graph: FloatGraph,
    batches: Sequence[tuple[Tensor, Tensor]],
    scheme: QuantScheme,
    progress: bool = False,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """What rounding a layer's weights alone does to the logits.

    Args:
        graph, batches, progress: as for `with_layer_bits`.
        scheme: of the weights' grid.

    Returns:
        By name of a layer, the squared error of the logits for 2 to 8 bits; and how many places of
        its output, of one utterance, every weight serves.
    """
    features, lengths = (values[:_UTTERANCES] for values in batches[0])
    outputs: dict[str, Value] = {}

    def keep(operator: FloatOperator, reads: Sequence[Value]) -> Value:
        outputs[operator.output] = execute(operator, reads)
        return outputs[operator.output]

    expected, valid = graph.run(features, lengths, step=keep)
    mask = valid_frames(expected.shape[2], valid)
    errors: dict[str, list[float]] = {}
    places: dict[str, int] = {}
    before: set[str] = set()
    layers = tqdm(graph.operators, desc="sensitivity", disable=not progress)
    for layer in layers:
        if isinstance(layer, FloatConv | FloatConv2d):
            places[layer.name] = outputs[layer.output][0][0].numel() // len(layer.weight)
            errors[layer.name] = []
            for bits in _WIDTHS:
                rounded = on_grid(replace(layer, weight_bits=bits), scheme)

                def step(
                    operator: FloatOperator,
                    reads: Sequence[Value],
                    layer: FloatOperator = layer,
                    rounded: FloatOperator = rounded,
                ) -> Value:
                    if operator.output in before:
                        return outputs[operator.output]
                    return execute(rounded if operator is layer else operator, reads)

                logits, _ = graph.run(features, lengths, step=step)
                error = (logits - expected).double().square().sum(1)[mask].sum()
                errors[layer.name].append(float(error))
        before.add(layer.output)
    return errors, places


def allocate(
    errors: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[float]], budget: float
) -> dict[str, int] | None:
    """Choose one option for every layer: the least sum of errors whose sizes stay in a budget.

    Args:
        errors, sizes: of the options of each layer, by its name.
        budget: of the sizes' sum.

    Returns:
        The index of every layer's option, or None if no choice is in the budget.
    """
    counts = [len(row) for row in errors.values()]
    layers = np.repeat(np.arange(len(counts)), counts)
    one_each = (layers == np.arange(len(counts))[:, None]).astype(float)
    cost = np.concatenate([np.asarray(errors[name]) for name in errors])
    size = np.concatenate([np.asarray(sizes[name], dtype=float) for name in errors])
    found = milp(
        cost / (cost.max() or 1.0),
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size / budget, ub=1)],
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return None
    options = np.split(found.x, np.cumsum(counts)[:-1])
    return {name: int(row.argmax()) for name, row in zip(errors, options, strict=True)}


def bits_by_layer(graph: FloatGraph) -> dict[str, int]:
    """The bits that layers have of their own, by name."""
    bits = {conv.name: conv.weight_bits for conv in _layers(graph)}
    return {name: width for name, width in bits.items() if width is not None}


def _bits(conv: FloatConv | FloatConv2d, bits: int, scheme: QuantScheme) -> int:
    return stored_bits(conv.weight, bits, scheme.weight_group if bits < 8 else None)


def _layers(graph: FloatGraph) -> list[FloatConv | FloatConv2d]:
    return [o for o in graph.operators if isinstance(o, FloatConv | FloatConv2d)]
