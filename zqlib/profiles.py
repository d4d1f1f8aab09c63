"""Profiles: which models, data and settings a reproduction runs (`workflow/profiles/*.json`)."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from zqlib.benchmark.plan import BenchmarkPlan
from zqlib.calibration_data import CALIBRATIONS
from zqlib.corpora.get import get_corpus
from zqlib.corpora.manifest import Utterance, read_manifest, write_manifest
from zqlib.errors import InputError
from zqlib.fields import check_types, known_fields
from zqlib.files import read_json
from zqlib.quantization.scheme import QuantScheme, usual_scheme
from zqlib.simulations import SIMULATIONS
from zqlib.synthesis import REDUCED, SynthesisConfig
from zqlib.variations import FAMILIES, Ablation, Method

__all__ = [
    "CorpusSplit",
    "ModelSource",
    "Profile",
    "load_profile",
    "profile_names",
    "profile_path",
]

_FOLDER = Path("workflow") / "profiles"


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint and what a reader must know of it.

    Attributes:
        path: a `.nemo` file; `${NAME}` stands for an environment variable.
        caveats: shown with every result.
        corpora: names of the corpora that it is scored on; empty for all of the profile.
    """

    path: str
    caveats: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self, path=str, caveats=tuple, corpora=tuple)

    @property
    def name(self) -> str:
        """The model's name in the results."""
        return Path(self.path).stem

    def resolve(self, root: Path) -> Path:
        """The file; relative paths start at the project's root."""
        return root / expand(self.path)


@dataclass(frozen=True)
class CorpusSplit:
    """Data to score on.

    Attributes:
        corpus, split: names in the results.
        manifest: a NeMo manifest that the user has, or None to build (`mini`) or fetch
            (`librispeech`, `an4`) the split.
        complete_utterances: size of the complete split; a smaller manifest is called a subset.
        first: only so many utterances, from the start; None for all.
        caveats: shown with every result.
    """

    corpus: str
    split: str
    manifest: str | None = None
    complete_utterances: int | None = None
    first: int | None = None
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        optional, count = (str, type(None)), (int, type(None))
        check_types(self, corpus=str, split=str, manifest=optional, caveats=tuple)
        check_types(self, complete_utterances=count, first=count)
        if self.first is not None and self.first < 1:
            raise InputError(f"The split {self.split} needs at least its first utterance.")

    def resolve(self, root: Path) -> Path:
        """The manifest, built or fetched below `data/` when the profile names none.

        Raises:
            InputError: the corpus is unknown, or its download fails.
        """
        folder = root / "data" / ("mini" if self.corpus == "mini" else "")
        manifest = (
            root / expand(self.manifest)
            if self.manifest is not None
            else get_corpus(self.corpus, folder, (self.split,))[self.split]
        )
        if self.first is not None:
            utterances = read_manifest(manifest)[: self.first]
            manifest = self.location(root)
            write_manifest(manifest, utterances)
        return manifest

    def location(self, root: Path) -> Path:
        """The manifest that `resolve` gives, there or not: nothing is built or fetched."""
        if self.first is not None:
            return root / "data" / self.corpus / f"{self.split}-first{self.first}.jsonl"
        if self.manifest is not None:
            return root / expand(self.manifest)
        return root / "data" / self.corpus / f"{self.split}.jsonl"

    def all_caveats(self, utterances: Sequence[Utterance]) -> tuple[str, ...]:
        """The caveats, and that the data is a subset where it is."""
        if self.complete_utterances is None or len(utterances) >= self.complete_utterances:
            return self.caveats
        return (f"subset of {len(utterances)} of {self.complete_utterances}", *self.caveats)


@dataclass(frozen=True)
class Profile:
    """A reproduction.

    Attributes:
        name: also the folder below `results/`.
        description: one sentence for the reader.
        models, corpora: every model is scored on every split (but see `ModelSource.corpora`).
        schemes: integer schemes, by short name.
        calibrations: `synthetic`, `noise`, `real`, and those of `zqlib.simulations`; the first, no
            simulation, serves all schemes, the others are compared with it at the first scheme.
        calibration_manifest: recordings for `real`, which no other calibration looks at.
        synthesis: how the calibration set is made.
        range_method: how activation ranges follow from it; None for what is usual for the family.
        budgets: other settings of the synthesis, to compare what they cost and reach.
        ablations: variations of the first scheme, to compare what they cost.
        shortcuts: whether the shortcuts of the authors' code are compared with what is done here.
        settings: variations of the synthesis and the first scheme, to compare what they reach.
        repeats: seeds that each of the `settings` is repeated with.
        methods: what helps with fewer bits, to compare at several widths.
        shown: whether its results are kept and shown; those of a mere trial stay below `work/`.
        benchmark: engines to time side by side; None for no benchmark.
        gpu: the same on an NVIDIA GPU.
    """

    name: str
    description: str
    models: tuple[ModelSource, ...]
    corpora: tuple[CorpusSplit, ...]
    schemes: tuple[str, ...] = ("w8a8",)
    calibrations: tuple[str, ...] = ("synthetic", "noise")
    calibration_manifest: str | None = None
    synthesis: SynthesisConfig = field(default=REDUCED)
    range_method: str | None = None
    budgets: tuple[SynthesisConfig, ...] = ()
    ablations: tuple[Ablation, ...] = ()
    shortcuts: bool = False
    settings: tuple[Ablation, ...] = ()
    repeats: int = 3
    methods: tuple[Method, ...] = ()
    shown: bool = True
    benchmark: BenchmarkPlan | None = None
    gpu: BenchmarkPlan | None = None

    def __post_init__(self) -> None:
        check_types(self, name=str, description=str, schemes=tuple, calibrations=tuple)
        check_types(self, calibration_manifest=(str, type(None)), shown=bool)
        check_types(self, shortcuts=bool, repeats=int)
        if not (self.models and self.corpora and self.schemes and self.calibrations):
            raise InputError(
                f"The profile {self.name!r} needs a model, a corpus, a scheme and a calibration."
            )
        models = [model.name for model in self.models]
        splits = [(split.corpus, split.split) for split in self.corpora]
        ablations = [ablation.name for ablation in self.ablations]
        settings = [setting.name for setting in self.settings]
        methods = [method.name for method in self.methods]
        named = (models, splits, ablations, settings, methods)
        if any(len({*names}) < len(names) for names in named):
            raise InputError(
                f"The profile {self.name!r} names a model, split or variation twice; their "
                "results would replace each other."
            )
        if self.repeats < 1:
            raise InputError(f"The profile {self.name!r} must run each setting at least once.")
        for calibration in self.calibrations:
            if calibration not in (*CALIBRATIONS, *SIMULATIONS):
                raise InputError(f"The calibration {calibration!r} is unknown to a profile.")
        if self.calibrations[0] in SIMULATIONS:
            raise InputError(
                f"The profile {self.name!r} begins its calibrations with a simulation, which makes "
                "no program for the other schemes; put another first."
            )
        if ("real" in self.calibrations) != (self.calibration_manifest is not None):
            raise InputError(
                f"The profile {self.name!r} needs a calibration_manifest for the calibration "
                "'real', and only for that."
            )
        for family in FAMILIES:
            first, *_ = self.quant_schemes(family)
            for variation in self.ablations + self.settings:
                variation.apply(first)
            for variation in self.ablations + self.settings + self.methods:
                variation.synthesise(self.synthesis)

    def folder(self, root: Path) -> Path:
        """Where its results lie in a checkout."""
        return root / ("results" if self.shown else "work/results") / self.name

    def resolve_calibration(self, root: Path) -> Path | None:
        """The manifest of recordings to calibrate on, where there is one."""
        return root / expand(self.calibration_manifest) if self.calibration_manifest else None

    def quant_schemes(self, family: str) -> list[QuantScheme]:
        """The schemes for a model of a family."""
        overrides = {} if self.range_method is None else {"range_method": self.range_method}
        return [usual_scheme(name, family, **overrides) for name in self.schemes]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a mapping.

        Raises:
            InputError: a key is unknown or missing, or a value impossible, at any level.
        """
        values = known_fields(cls, value)
        try:
            values["models"] = tuple(
                ModelSource(**known_fields(ModelSource, model))
                for model in values.get("models", ())
            )
            values["corpora"] = tuple(
                CorpusSplit(**known_fields(CorpusSplit, split))
                for split in values.get("corpora", ())
            )
            if "synthesis" in values:
                values["synthesis"] = SynthesisConfig.from_json(values["synthesis"])
            kinds = {"ablations": Ablation, "settings": Ablation, "methods": Method}
            for key, kind in kinds.items():
                values[key] = tuple(
                    kind(**known_fields(kind, item)) for item in values.get(key, ())
                )
            values["budgets"] = tuple(map(SynthesisConfig.from_json, values.get("budgets", ())))
            for key in ("benchmark", "gpu"):
                if key in values:
                    values[key] = BenchmarkPlan.from_json(values[key])
            profile = cls(**values)
        except TypeError as error:
            raise InputError(f"The profile is incomplete ({error}).") from error
        corpora = {split.corpus for split in profile.corpora}
        for model in profile.models:
            if unknown := sorted(set(model.corpora) - corpora):
                raise InputError(f"The model {model.name} names the unknown corpus {unknown[0]!r}.")
        return profile


def expand(path: str) -> str:
    """Replace `${NAME}` by environment variables.

    Raises:
        InputError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if not os.environ.get(name):
            raise InputError(
                f"This profile needs the environment variable {name}; set it to the folder with "
                f"the models and the speech, as in {name}=../shared."
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, path)


def profile_path(root: Path, name: str) -> Path:
    """The file of a profile of a checkout."""
    return root / _FOLDER / f"{name}.json"


def profile_names(root: Path) -> list[str]:
    """Names of the profiles of a checkout.

    Raises:
        InputError: there is none.
    """
    known = sorted(path.stem for path in (root / _FOLDER).glob("*.json"))
    if not known:
        raise InputError(f"{root.resolve()} is not a checkout of zqlib; run this command in one.")
    return known


def load_profile(root: Path, name: str) -> Profile:
    """Read `workflow/profiles/<name>.json`.

    Raises:
        InputError: there is no such profile, or it is malformed.
    """
    known = profile_names(root)
    if name not in known:
        raise InputError(f"The profile {name!r} is unknown; use one of {', '.join(known)}.")
    profile = Profile.from_json(read_json(profile_path(root, name)))
    if profile.name != name:
        raise InputError(f"The profile in {name}.json calls itself {profile.name!r}; rename one.")
    return profile
