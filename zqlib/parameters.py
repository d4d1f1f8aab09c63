"""What a notebook can be told, and the refusal of everything else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from zqlib.errors import InputError
from zqlib.profiles import Profile, load_profile

__all__ = ["Parameters", "parse_parameters"]

_OF_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open"}


@dataclass(frozen=True)
class Parameters:
    """What a notebook can be told.

    Attributes:
        profile: a file in `workflow/profiles`.
        models: names of models to run, empty for all of the profile.
        splits: names of corpus splits to run, empty for all.
        seed: of the synthesis and the noise, in place of the profile's.
    """

    profile: str = "quick"
    models: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    seed: int | None = None
    root: Path = field(default=Path("."))

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Collect the parameters that a notebook's cells, and papermill, have assigned.

        papermill only warns of an unknown parameter; here it is refused.

        Raises:
            InputError: a name is not a parameter, or its value has the wrong type.
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in namespace.items()
            if not name.startswith("_")
            and name not in _OF_IPYTHON
            and isinstance(value, str | int | float | list | tuple | dict | None)
        }
        known = {item.name for item in fields(cls)} - {"root"}
        if unknown := sorted(values.keys() - known):
            raise InputError(
                f"The notebook parameter {unknown[0]!r} is unknown; use {', '.join(sorted(known))}."
            )
        parameters = cls(**values)
        if not isinstance(parameters.profile, str) or not (
            parameters.seed is None or type(parameters.seed) is int
        ):
            raise InputError("The parameter profile is a name and seed an integer.")
        for name in ("models", "splits"):
            names = getattr(parameters, name)
            if not isinstance(names, tuple) or not all(isinstance(item, str) for item in names):
                raise InputError(f"The parameter {name} is a list of names.")
        return parameters

    @property
    def results(self) -> Path:
        """The folder of the profile's results."""
        return self.load_profile().folder(self.root)

    def load_profile(self) -> Profile:
        """The profile, cut down to the models and splits asked for.

        Raises:
            InputError: a name is not in the profile.
        """
        profile = load_profile(self.root, self.profile)
        models = [model.name for model in profile.models]
        splits = [split.split for split in profile.corpora]
        for asked, known, kind in ((self.models, models, "model"), (self.splits, splits, "split")):
            for name in asked:
                if name not in known:
                    raise InputError(
                        f"The profile {self.profile} has no {kind} {name!r}; "
                        f"use {', '.join(known)}."
                    )
        return replace(
            profile,
            models=tuple(m for m in profile.models if m.name in (self.models or models)),
            corpora=tuple(s for s in profile.corpora if s.split in (self.splits or splits)),
            synthesis=(
                profile.synthesis
                if self.seed is None
                else replace(profile.synthesis, seed=self.seed)
            ),
        )


def parse_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` assignments of the command line.

    A value is an integer where it looks like one; the parameters that are lists take names
    separated by commas.

    Raises:
        InputError: an assignment has no `=` or no name.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise InputError(f"{assignment!r} is not a parameter; write name=value.")
        if name in ("models", "splits"):
            values[name] = value.split(",")
        else:
            values[name] = int(value) if re.fullmatch(r"-?[0-9]{1,20}", value) else value
    return values
