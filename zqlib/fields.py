"""Checks of the fields of configurations that people write as JSON."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zqlib.errors import InputError

__all__ = ["check_types", "known_fields"]


def check_types(value: object, **kinds: type | tuple[type, ...]) -> None:
    """Refuse a field of another type; a field that is a tuple holds text.

    Raises:
        InputError: there is one.
    """
    for name, kind in kinds.items():
        found = getattr(value, name)
        texts = found if isinstance(found, tuple) else ()
        if not isinstance(found, kind) or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"The {type(value).__name__} has a {name} of the wrong type: {found!r}."
            )


def known_fields(kind: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields, lists as tuples.

    Raises:
        InputError: not a mapping, or a key is unknown.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"A {kind.__name__} must be a JSON object.")
    if unknown := sorted(set(value) - {item.name for item in fields(kind)}):
        raise InputError(f"The {kind.__name__} has the unknown key {unknown[0]!r}; remove it.")
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
