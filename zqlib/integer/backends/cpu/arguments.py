"""The structs of `kernels/arguments.h`, field by field. All integers have 64 bits."""

import ctypes
from ctypes import c_int64, c_void_p

__all__ = [
    "KINDS",
    "Argmax",
    "Arguments",
    "Attention",
    "Convolution",
    "Depthwise",
    "LayerNorm",
    "Lookup",
    "Output",
    "Planar",
    "Positions",
    "Product",
    "Requantization",
    "Step",
    "Term",
]


def _pointers(names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names.split()]


def _integers(names: str) -> list[tuple[str, type]]:
    return [(name, c_int64) for name in names.split()]


class Term(ctypes.Structure):
    """A summand of a requantization."""

    _fields_ = [*_pointers("values m e"), *_integers("wide upper zero")]


class Output(ctypes.Structure):
    """Where results go."""

    _fields_ = [
        *_pointers("values terms table"),
        *_integers("term_count fits_int32 channels low high zero wide"),
    ]


class Convolution(ctypes.Structure):
    """Conv1d with one group."""

    _fields_ = [
        *_pointers("x weight bias lengths scratch"),
        *_integers("batch frames channels zero out_frames taps stride dilation padding"),
        ("output", Output),
    ]


class Depthwise(ctypes.Structure):
    """Conv1d with a group per channel."""

    _fields_ = Convolution._fields_


class Planar(ctypes.Structure):
    """Conv2d."""

    _fields_ = [
        *_pointers("x weight bias lengths scratch"),
        *_integers("batch frames bands planes zero"),
        *_integers("out_frames out_bands out_planes taps stride padding"),
        *_integers("planes_last out_planes_last"),
        ("output", Output),
    ]


class Requantization(ctypes.Structure):
    """A requantization that is part of no other step."""

    _fields_ = [*_integers("rows"), ("output", Output)]


class LayerNorm(ctypes.Structure):
    """LayerNorm."""

    _fields_ = [
        *_pointers("x out m e rounding"),
        *_integers("rows channels eps x_wide x_zero low high out_zero out_wide"),
    ]


class Lookup(ctypes.Structure):
    """An element-wise function, as a table."""

    _fields_ = [*_pointers("x out table"), *_integers("elements wide first")]


class Product(ctypes.Structure):
    """Product of two tensors."""

    _fields_ = [*_pointers("a b out"), *_integers("elements a_zero b_zero")]


class Positions(ctypes.Structure):
    """Rows of a table of distances."""

    _fields_ = [*_pointers("table out"), *_integers("frames channels")]


class Attention(ctypes.Structure):
    """Attention with relative positions."""

    _fields_ = [
        *_pointers("query key value position content_bias distance_bias lengths scratch out"),
        *_integers("batch frames channels heads"),
        *_integers("content_m content_e distance_m distance_e exponent_m exponent_e fits_int32"),
    ]


class Argmax(ctypes.Structure):
    """Argmax over channels."""

    _fields_ = [*_pointers("x out"), *_integers("rows channels")]


class Step(ctypes.Structure):
    """One step of a run."""

    _fields_ = [("kind", c_int64), ("arguments", c_void_p)]


Arguments = (
    Convolution
    | Depthwise
    | Planar
    | Requantization
    | LayerNorm
    | Lookup
    | Product
    | Positions
    | Attention
    | Argmax
)

KINDS: tuple[type[Arguments], ...] = (
    Convolution,
    Depthwise,
    Planar,
    Requantization,
    LayerNorm,
    Lookup,
    Product,
    Positions,
    Attention,
    Argmax,
)
"""In the order of the C enumeration."""
