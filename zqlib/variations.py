"""What an experiment varies of a profile's scheme and of its synthesis."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zqlib.errors import InputError
from zqlib.fields import check_types
from zqlib.quantization.scheme import QuantScheme, preset
from zqlib.synthesis import SynthesisConfig

__all__ = ["FAMILIES", "Ablation", "Method"]

FAMILIES = ("quartznet", "jasper", "conformer")
"""Of models."""


@dataclass(frozen=True)
class Ablation:
    """What differs from a profile's first scheme and from its synthesis, in one respect.

    Attributes:
        name: in the results.
        changes: fields of `QuantScheme` and their other values.
        families: of models that it makes a difference to; empty for all.
        synthesis: fields of `SynthesisConfig` and their other values.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] = ()
    synthesis: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, name=str, changes=dict, families=tuple, synthesis=dict)
        if not re.fullmatch(r"[a-z0-9.-]+", self.name):
            raise InputError(f"The ablation {self.name!r} must be named in a-z, 0-9, '.' and '-'.")
        if unknown := sorted(set(self.families) - set(FAMILIES)):
            raise InputError(f"The ablation {self.name} names the unknown family {unknown[0]!r}.")

    def concerns(self, family: str) -> bool:
        """Whether it makes a difference to models of a family."""
        return not self.families or family in self.families

    def apply(self, scheme: QuantScheme) -> QuantScheme:
        """The scheme with the changes.

        Raises:
            InputError: a change is of no field of a scheme, or to an impossible value.
        """
        return QuantScheme.from_json({**scheme.to_json(), **self.changes})

    def synthesise(self, config: SynthesisConfig) -> SynthesisConfig:
        """The synthesis with the changes.

        Raises:
            InputError: a change is of no field of the synthesis, or to an impossible value.
        """
        return SynthesisConfig.from_json({**config.to_json(), **self.synthesis})


@dataclass(frozen=True)
class Method(Ablation):
    """An `Ablation` of every one of some schemes, neither recentred nor equalized, and rounded to
    the nearest level.

    Attributes:
        schemes: their short names.
    """

    schemes: tuple[str, ...] = ("w8a8", "w6a6", "w4a8", "w4a4")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self, schemes=tuple)
        for name in self.schemes:
            self.apply(preset(name))
