"""What is scored: a profile's float models, and the integer programs made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from zqlib.calibration_data import calibration_batches
from zqlib.digests import cache_key, data_digest
from zqlib.files import sha256_file
from zqlib.models import CTCModel, load_model
from zqlib.parameters import Parameters
from zqlib.profiles import CorpusSplit, ModelSource, Profile
from zqlib.quantization.scheme import QuantScheme
from zqlib.quantized_model import load_quantized, quantize
from zqlib.recognition import Engine, FloatRecogniser, IntegerRecogniser, Recogniser
from zqlib.simulations import SIMULATIONS
from zqlib.synthesis import SynthesisConfig
from zqlib.variations import Ablation

__all__ = ["Checkpoint", "Recipe", "System", "checkpoints"]


@dataclass(frozen=True)
class Recipe:
    """What makes an integer program of a float model; `recordings` only for calibration `real`."""

    scheme: QuantScheme
    calibration: str
    synthesis: SynthesisConfig
    recordings: Path | None = None


@dataclass(frozen=True)
class System:
    """A recogniser to score, and how its records name it.

    Attributes:
        experiment, variant: see `zqlib.results.Record`.
        recipe: of an integer program; None for the float model.
        engine: what runs it.
        details: more for the record's provenance.
        simulation: None, or which of `zqlib.simulations` hears in the place of the recipe's
            program, with that program's weights; its size is counted as the program's.
    """

    experiment: str
    recipe: Recipe | None = None
    engine: Engine = "float"
    variant: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    simulation: str | None = None

    @property
    def scheme(self) -> str:
        """`float`, `w8a8`, ..."""
        return self.recipe.scheme.name if self.recipe else "float"

    @property
    def calibration(self) -> str:
        """`none`, `synthetic`, `noise`, `real` or a simulation."""
        return self.simulation or (self.recipe.calibration if self.recipe else "none")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader must know of it."""
        return (SIMULATIONS[self.simulation].caveat,) if self.simulation else ()


@dataclass(frozen=True)
class Checkpoint:
    """A float model of a profile, with the files made of it below a checkout's `work/`."""

    root: Path
    profile: Profile
    source: ModelSource

    @property
    def name(self) -> str:
        """The model's name in the results."""
        return self.source.name

    @cached_property
    def path(self) -> Path:
        """The `.nemo` file."""
        return self.source.resolve(self.root)

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_file(self.path)

    @cached_property
    def model(self) -> CTCModel:
        """The float model."""
        return load_model(self.path)

    def data_sha256(self, split: CorpusSplit) -> str:
        """Of a split's transcripts and audio, read once."""
        if split not in self._data_sha256:
            self._data_sha256[split] = data_digest(split.resolve(self.root))
        return self._data_sha256[split]

    @cached_property
    def _data_sha256(self) -> dict[CorpusSplit, str]:
        return {}

    @property
    def cache(self) -> Path:
        """Where finished synthetic batches are kept."""
        return self.root / "work" / "synthesis"

    def splits(self) -> Iterator[CorpusSplit]:
        """The splits that the model is scored on."""
        names = self.source.corpora
        return (s for s in self.profile.corpora if not names or s.corpus in names)

    def recipe(self, variation: Ablation) -> Recipe:
        """The profile's first scheme and synthetic set, as the variation has them."""
        profile = self.profile
        scheme = variation.apply(profile.quant_schemes(self.model.family)[0])
        return Recipe(scheme, "synthetic", variation.synthesise(profile.synthesis))

    def program(self, recipe: Recipe) -> Path:
        """Where the program of a recipe lies, or will lie."""
        parts: dict[str, Any] = {
            "model": self.sha256,
            "scheme": recipe.scheme.to_json(),
            "calibration": recipe.calibration,
            "synthesis": recipe.synthesis.to_json(),
        }
        if recipe.recordings:
            parts["recordings"] = data_digest(recipe.recordings)
        key = cache_key("zqlib.quantized_model", "zqlib.calibration_data", **parts)
        name = f"{self.name}-{recipe.scheme.name}-{recipe.calibration}-{key}.zq"
        return self.root / "work" / "programs" / name

    def make_program(self, recipe: Recipe) -> Path:
        """The program of a recipe, made when it is missing."""
        program = self.program(recipe)
        if not program.is_file():
            data, details = self.calibration(recipe)
            quantize(self.model, data, recipe.scheme, details).save(program)
        return program

    def calibration(self, recipe: Recipe) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Any]]:
        """See `zqlib.calibration_data.calibration_batches`."""
        return calibration_batches(
            self.model, recipe.calibration, recipe.synthesis, recipe.recordings, self.cache
        )

    def size_mb(self, system: System) -> float:
        """Of what is stored, 10^6 bytes."""
        if system.recipe is None:
            return self.model.size_mb
        return self.make_program(system.recipe).stat().st_size / 1e6

    def recogniser(self, system: System) -> Recogniser:
        """What hears."""
        if system.recipe is None:
            return FloatRecogniser(self.model)
        if system.simulation:
            data, _ = self.calibration(system.recipe)
            return SIMULATIONS[system.simulation](self.model, data, system.recipe.scheme)
        return IntegerRecogniser(load_quantized(self.make_program(system.recipe)), system.engine)


def checkpoints(parameters: Parameters) -> list[Checkpoint]:
    """The models of a profile, cut down to those asked for."""
    profile = parameters.load_profile()
    return [Checkpoint(parameters.root, profile, source) for source in profile.models]
