"""Profiles: all of ours load, and mistakes in one are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_corpus

from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError
from zqlib.profiles import CorpusSplit, ModelSource, Profile, load_profile
from zqlib.quantization.scheme import QuantScheme
from zqlib.synthesis import REDUCED, SynthesisConfig
from zqlib.variations import Ablation

ROOT = Path(__file__).parents[1]
OURS = sorted(path.stem for path in (ROOT / "workflow" / "profiles").glob("*.json"))
MINIMAL: dict[str, Any] = {
    "name": "p",
    "description": "One sentence.",
    "models": [{"path": "models/a.nemo"}],
    "corpora": [{"corpus": "mini", "split": "mini-clean"}],
}


def test_the_profiles_of_the_readme_are_there() -> None:
    assert {"quick", "local"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_our_profiles_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ_ASSETS", str(tmp_path))
    profile = load_profile(ROOT, name)
    assert profile.name == name and profile.description.endswith(".")
    assert "w8a8" in [scheme.name for scheme in profile.quant_schemes("conformer")]
    for model in profile.models:
        path = model.resolve(ROOT)
        assert path.is_relative_to(tmp_path) or path.is_relative_to(ROOT / "zqlib")
        assert model.caveats or name == "full"  # official checkpoints stand for themselves
    for split in profile.corpora:
        if split.manifest is not None:
            assert split.resolve(ROOT).is_relative_to(tmp_path)
            assert split.complete_utterances


def test_the_quick_profile_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZQ_ASSETS", raising=False)
    profile = load_profile(ROOT, "quick")
    assert all(model.resolve(ROOT) for model in profile.models)
    assert {split.corpus for split in profile.corpora} == {"mini"}


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("ZQ_TEST_FOLDER", raising=False)
    else:
        monkeypatch.setenv("ZQ_TEST_FOLDER", value)
    for source in (
        ModelSource("${ZQ_TEST_FOLDER}/a.nemo"), CorpusSplit("c", "s", "${ZQ_TEST_FOLDER}/a.jsonl")
    ):  # fmt: skip
        with pytest.raises(InputError, match="needs the environment variable ZQ_TEST_FOLDER"):
            source.resolve(ROOT)


def test_a_profile_and_its_defaults() -> None:
    profile = Profile.from_json(MINIMAL)
    assert profile.models == (ModelSource("models/a.nemo"),)
    assert profile.models[0].name == "a"
    assert profile.corpora == (CorpusSplit("mini", "mini-clean"),)
    assert profile.calibrations == ("synthetic", "noise") and profile.synthesis == REDUCED
    more = MINIMAL | {"synthesis": {"steps": 3}, "schemes": ["w4a8"], "range_method": "mse"}
    assert Profile.from_json(more).synthesis == SynthesisConfig(steps=3)
    (scheme,) = Profile.from_json(more).quant_schemes("quartznet")
    assert (scheme.name, scheme.range_method) == ("w4a8", "mse")


def test_ranges_are_the_familys_unless_the_profile_names_a_method() -> None:
    profile, other = (Profile.from_json(MINIMAL | m) for m in ({}, {"range_method": "percentile"}))
    for family, usual in (("quartznet", "minmax"), ("jasper", "mse"), ("conformer", "minmax")):
        assert [s.range_method for s in profile.quant_schemes(family)] == [usual]
        assert [s.range_method for s in other.quant_schemes(family)] == ["percentile"]


def test_an_ablation_changes_one_scheme_in_its_own_fields() -> None:
    ablation = {"name": "narrow", "changes": {"stream_bits": 8}, "families": ["conformer"]}
    (found,) = Profile.from_json(MINIMAL | {"ablations": [ablation]}).ablations
    assert found == Ablation("narrow", {"stream_bits": 8}, ("conformer",))
    base = QuantScheme(4, 6, range_method="mse")
    assert found.apply(base) == QuantScheme(4, 6, range_method="mse", stream_bits=8)
    assert found.synthesise(REDUCED) == REDUCED


def test_a_setting_changes_the_synthesis() -> None:
    (found,) = Profile.from_json(
        MINIMAL | {"settings": [{"name": "short", "synthesis": {"steps": 5}}]}
    ).settings
    assert found.synthesise(REDUCED) == replace(REDUCED, steps=5)
    assert found.apply(QuantScheme()) == QuantScheme()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"odd": 1}, "unknown key 'odd'"),
        ({"models": [{"path": "a.nemo", "odd": 1}]}, "ModelSource has the unknown key 'odd'"),
        ({"corpora": [{"corpus": "c", "split": "s", "odd": 1}]}, "CorpusSplit has the unknown key"),
        ({"synthesis": {"odd": 1}}, "synthesis config has the unknown key"),
        ({"models": []}, "needs a model"),
        ({"corpora": []}, "needs a model, a corpus"),
        ({"schemes": []}, "a scheme and a calibration"),
        ({"calibrations": []}, "a scheme and a calibration"),
        ({"ablations": [{"changes": {}}]}, "incomplete"),
        ({"ablations": [{"name": "a b", "changes": {}}]}, "must be named in a-z"),
        ({"ablations": [{"name": "a", "changes": []}]}, "changes of the wrong type"),
        ({"ablations": [{"name": "a", "changes": {"odd": 1}}]}, "unknown key 'odd'"),
        ({"ablations": [{"name": "a", "changes": {"stream_bits": 4}}]}, "from 8 to 24"),
        ({"ablations": [{"name": "a", "changes": {}}] * 2}, "twice"),
        ({"settings": [{"name": "a"}] * 2}, "twice"),
        ({"settings": [{"name": "a", "synthesis": {"odd": 1}}]}, "unknown key 'odd'"),
        ({"settings": [{"name": "a", "synthesis": {"steps": -1}}]}, "steps"),
        ({"settings": [{"name": "a", "synthesis": []}]}, "synthesis of the wrong type"),
        ({"methods": [{"name": "a"}] * 2}, "twice"),
        ({"methods": [{"name": "a", "schemes": ["w9a8"]}]}, "weight_bits is 9"),
        ({"methods": [{"name": "a", "schemes": "w8a8"}]}, "schemes of the wrong type"),
        ({"methods": [{"name": "a", "changes": {"odd": 1}}]}, "unknown key 'odd'"),
        ({"shortcuts": "all"}, "shortcuts of the wrong type"),
        ({"repeats": 0}, "at least once"),
        (
            {"ablations": [{"name": "a", "changes": {}, "families": ["citrinet"]}]},
            "unknown family 'citrinet'",
        ),
        ({"models": ["a.nemo"]}, "must be a JSON object"),
        ({"models": 5}, "incomplete"),
        ({"models": [{}]}, "incomplete"),
        ({"models": [{"path": 5}]}, "path of the wrong type"),
        ({"models": [{"path": "a.nemo", "caveats": "one"}]}, "caveats of the wrong type"),
        ({"models": [{"path": "a.nemo", "corpora": ["an4"]}]}, "unknown corpus 'an4'"),
        ({"models": [{"path": "a/m.nemo"}, {"path": "b/m.nemo"}]}, "twice"),
        ({"corpora": [{"corpus": "c", "split": "s"}] * 2}, "twice"),
        ({"corpora": [{"corpus": "c"}]}, "incomplete"),
        ({"corpora": [{"corpus": "c", "split": "s", "manifest": 5}]}, "wrong type"),
        ({"corpora": [{"corpus": "c", "split": "s", "complete_utterances": "5"}]}, "wrong type"),
        ({"schemes": ["w1a8"]}, "weight_bits is 1"),
        ({"schemes": ["int8"]}, "not a quantization scheme"),
        ({"schemes": "w8a8"}, "schemes of the wrong type"),
        ({"schemes": [8]}, "schemes of the wrong type"),
        ({"calibrations": ["guessed"]}, "'guessed' is unknown"),
        ({"calibrations": ["real"]}, "needs a calibration_manifest"),
        ({"calibrations": ["dynamic", "synthetic"]}, "begins its calibrations with a simulation"),
        ({"calibration_manifest": "a.jsonl"}, "only for that"),
        ({"calibration_manifest": 5, "calibrations": ["real"]}, "wrong type"),
        ({"range_method": "best"}, "'best' is unknown"),
        ({"synthesis": {"steps": -1}}, "steps"),
        ({"synthesis": 5}, "must be a JSON object"),
        ({"name": 5}, "name of the wrong type"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Profile.from_json(MINIMAL | change)


@pytest.mark.parametrize("missing", ["name", "description", "models", "corpora"])
def test_a_profile_without_a_part_is_refused(missing: str) -> None:
    with pytest.raises(InputError):
        Profile.from_json({key: value for key, value in MINIMAL.items() if key != missing})


@pytest.mark.parametrize("value", [[], 5, None, "text"])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="must be a JSON object"):
        Profile.from_json(value)


def write_profile(root: Path, name: str, value: Any) -> None:
    path = root / "workflow" / "profiles" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_profiles_are_found_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkout"):
        load_profile(tmp_path, "p")
    write_profile(tmp_path, "p", MINIMAL)
    assert load_profile(tmp_path, "p") == Profile.from_json(MINIMAL)
    for name in ("absent", "../profiles/p", ""):
        with pytest.raises(InputError, match="unknown; use one of p"):
            load_profile(tmp_path, name)
    write_profile(tmp_path, "q", MINIMAL)
    with pytest.raises(InputError, match="calls itself 'p'"):
        load_profile(tmp_path, "q")


def test_a_subset_is_called_one(tmp_path: Path) -> None:
    utterances = read_manifest(write_corpus(tmp_path, 2))
    split = CorpusSplit("c", "s", complete_utterances=5, caveats=("noises",))
    assert split.all_caveats(utterances) == ("subset of 2 of 5", "noises")
    complete = CorpusSplit("c", "s", complete_utterances=2, caveats=("noises",))
    assert complete.all_caveats(utterances) == ("noises",)
    assert CorpusSplit("c", "s").all_caveats(utterances) == ()


def test_a_manifest_of_the_users_is_taken_as_it_is(tmp_path: Path) -> None:
    assert CorpusSplit("c", "s", "a/m.jsonl").resolve(tmp_path) == tmp_path / "a" / "m.jsonl"
    assert CorpusSplit("c", "s", "/abs/m.jsonl").resolve(tmp_path) == Path("/abs/m.jsonl")


def test_an_unknown_corpus_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="corpus 'c' is unknown"):
        CorpusSplit("c", "s").resolve(tmp_path)


def test_only_the_first_utterances(tmp_path: Path) -> None:
    whole = read_manifest(write_corpus(tmp_path / "corpus", 3))
    split = CorpusSplit("noises", "test", "corpus/test.jsonl", complete_utterances=3, first=2)
    assert not split.location(tmp_path).exists()
    manifest = split.resolve(tmp_path)
    assert manifest == split.location(tmp_path)
    found = read_manifest(manifest)
    assert [(u.text, u.duration_s) for u in found] == [(u.text, u.duration_s) for u in whole[:2]]
    assert all(u.audio_path.is_file() for u in found)
    assert split.all_caveats(found) == ("subset of 2 of 3",)
