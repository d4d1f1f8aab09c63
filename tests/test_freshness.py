"""`zq status` and the badges: what is said of a page, with and without its inputs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ROOT, write_audio, write_checkpoint, write_project

from zqlib.badges import badge
from zqlib.files import write_json
from zqlib.freshness import Status, inputs, load_parameters, made_from, note, statuses
from zqlib.profiles import load_profile

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a page that pretends to have been executed, and a record of its run."""
    root = write_project(tmp_path)
    folder = root / "results" / "smoke"
    write_json(folder / "notebooks" / "wer.ipynb", {})
    write_json(folder / "records" / "wer_tiny.json", {"hypotheses": "hypotheses/a.jsonl"})
    write_json(folder / "hypotheses" / "a.jsonl", {})
    note_page(root)
    return root


def note_page(root: Path, **values: Any) -> None:
    parameters = {"profile": "smoke", **values}
    digests = inputs(root, load_parameters(root, parameters).load_profile(), required=True)
    made = made_from(root, "wer", parameters, digests)
    note(root / "results" / "smoke", "wer", made)


def edit_profile(root: Path, **values: Any) -> None:
    path = root / "workflow" / "profiles" / "smoke.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_note(root: Path, part: str, name: str, value: str) -> None:
    path = root / "results" / "smoke" / "provenance" / "wer.json"
    noted = json.loads(path.read_text())
    noted["made_from"][part][name] = value
    path.write_text(json.dumps(noted))


CHANGES: dict[str, tuple[Callable[[Path], Any], Status]] = {
    "nothing": (lambda root: None, Status("fresh")),
    "a model": (lambda root: write_checkpoint(root / "tiny.nemo", seed=1),
                Status("stale", ("model tiny changed",))),
    "a recording": (lambda root: write_audio(root / "corpus/audio/0.wav", 0.4, seed=9),
                    Status("stale", ("noises test changed",))),
    "no model here": (lambda root: (root / "tiny.nemo").unlink(),
                      Status("fresh", (), ("model tiny",))),
    "no recordings here": (lambda root: shutil.rmtree(root / "corpus"),
                           Status("fresh", (), ("noises test",))),
    "other schemes": (lambda root: edit_profile(root, schemes=["w8a8"]),
                      Status("stale", ("profile changed",))),
    "other ablations": (lambda root: edit_profile(root, ablations=[]), Status("fresh")),
    "a source": (lambda root: edit_note(root, "sources", "zqlib.audio", "0"),
                 Status("stale", ("zqlib.audio changed",))),
    "a source of old": (lambda root: edit_note(root, "sources", "zqlib.gone", "0"),
                        Status("stale", ("zqlib.gone changed",))),
    "no such package here": (lambda root: edit_note(root, "environment", "triton-of-mars", "3.7"),
                             Status("fresh", (), ("package triton-of-mars",))),
    "a package": (lambda root: edit_note(root, "environment", "jiwer", "0.1"),
                  Status("stale", ("jiwer 0.1 -> 4.0.0",))),
    "a part of the data": (lambda root: note_page(root, splits=["test"]),
                           Status("stale", ("parameters changed",))),
    "a record edited": (
        lambda root: (root / "results/smoke/records/wer_tiny.json").write_text("{"),
        Status("stale", ("hypotheses/a.jsonl lost or edited",
                         "records/wer_tiny.json lost or edited"))),
    "a page lost": (lambda root: (root / "results/smoke/notebooks/wer.ipynb").unlink(),
                    Status("missing")),
    "a note lost": (lambda root: shutil.rmtree(root / "results/smoke/provenance"),
                    Status("missing")),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_page_is_what_it_was_made_from(root: Path, change: str) -> None:
    act, expected = CHANGES[change]
    act(root)
    assert statuses(root, "smoke")["wer"] == expected


@pytest.mark.parametrize(
    ("page", "plan", "system", "engine"),
    [
        ("benchmark", "benchmark", "cpu:int8", "cpu"),
        ("benchmark", "benchmark", "triton:int8", "triton"),
        ("gpu", "gpu", "triton:int8", "triton"),
        ("wer", "benchmark", "cpu:int8", None),
        ("wer", "gpu", "triton:int8", None),
    ],
)
def test_only_what_times_an_engine_depends_on_it(
    root: Path, page: str, plan: str, system: str, engine: str | None
) -> None:
    edit_profile(root, **{plan: {"systems": ["torch:float32", system], "baseline": system}})
    reached = made_from(root, page, {"profile": "smoke"}, {})["sources"]
    for other in ("cpu", "triton"):
        executor = f"zqlib.integer.backends.{other}.executor"
        assert (executor in reached) == (other == engine)
    kernels = [name for name in reached if name.startswith("zqlib.integer.backends.triton")]
    assert bool(kernels) == (engine == "triton")
    assert "zqlib.integer.reference" in reached


def test_status_prints_every_page(zq: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "tiny.nemo").unlink()
    monkeypatch.chdir(root)
    code, out, _ = zq("status")
    assert code == 0
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert ["smoke", "wer", "fresh (not checked: model tiny)"] in lines
    assert ["smoke", "synthesis", "missing"] in lines
    pages = ["synthesis", "wer", "layers", "ablation", "exports"]
    assert [name for _, name, _ in lines] == pages
    rows = json.loads(zq("status", "--format", "json")[1])
    assert [(row["notebook"], row["state"]) for row in rows][1] == ("wer", "fresh")


@pytest.mark.parametrize(
    ("state", "kind", "says"),
    [
        (Status("fresh", (), ("model a",)), "tip", "Not checked here: model a."),
        (Status("stale", ("zqlib.audio changed",)), "warning", "Since then: zqlib.audio changed."),
        (Status("missing"), "warning", "Not known"),
    ],
)
def test_a_badge_says_why(state: Status, kind: str, says: str) -> None:
    text = badge(state)
    assert text.startswith(f":::{{{kind}}}\n") and says in text and text.endswith("\n:::\n")


def test_a_trial_is_never_shown() -> None:
    profile = load_profile(ROOT, "smoke")
    assert not profile.shown and profile.folder(ROOT) == ROOT / "work/results/smoke"
    assert "smoke" not in (ROOT / "_toc.yml").read_text()
    assert not (ROOT / "results" / "smoke").exists()
