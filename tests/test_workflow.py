"""The jobs of a reproduction: who needs whom, shards, clusters, and several processes at once."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ROOT, write_checkpoint, write_project
from mistakes import one_sentence

from zqlib import recognition
from zqlib.errors import InputError
from zqlib.evaluation import read_hypotheses
from zqlib.experiments.scoring import hear, hypotheses_path, merge_shards
from zqlib.experiments.systems import checkpoints
from zqlib.experiments.wer import wer_systems
from zqlib.freshness import inputs, load_parameters, made_from, notebooks
from zqlib.processes import alone
from zqlib.recognition import load_recogniser, recognise_manifest
from zqlib.workflow import plan

ZQ = str(Path(sys.executable).parent / "zq")
VALUES = {"profile": "smoke"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of five utterances in which nothing has run."""
    return write_project(tmp_path, 5)


def planned(root: Path, shards: int = 1, **values: Any) -> dict[str, Any]:
    parameters = {**VALUES, **values}
    profile = load_parameters(root, parameters).load_profile()
    digests = inputs(root, profile, required=True)
    pages = {n: made_from(root, n, parameters, digests) for n in notebooks(profile)}
    return plan(root, parameters, pages, shards)


def stamps(found: dict[str, Any]) -> set[str]:
    return {f"work/jobs/{kind}/{name}" for kind, jobs in found["jobs"].items() for name in jobs}


@pytest.mark.parametrize("shards", [1, 3])
def test_every_job_needs_jobs_of_the_plan(root: Path, shards: int) -> None:
    found = planned(root, shards)
    for jobs in found["jobs"].values():
        for job in jobs.values():
            assert set(job["needs"]) <= stamps(found)
    assert set(found["targets"]) <= stamps(found)
    # float; w8a8 of two calibrations, w4a8; w8a8 on the cpu, as is and with mse
    assert len(found["jobs"]["evaluate"]) == 6 * shards
    assert len(found["jobs"].get("merge", {})) == (6 if shards > 1 else 0)
    assert len(found["jobs"]["notebook"]) == 5


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda root: write_checkpoint(root / "tiny.nemo", seed=1), set()),
        (lambda root: shutil.copy(root / "corpus/audio/1.wav", root / "corpus/audio/0.wav"),
         {"synthesize", "quantize"}),
    ],
    ids=["a model", "a recording"],
)  # fmt: skip
def test_the_name_of_a_job_tells_what_it_depends_on(
    root: Path, change: Callable[[Path], Any], same: set[str]
) -> None:
    before = planned(root)
    change(root)
    after = planned(root)
    for kind in before["jobs"]:
        common = before["jobs"][kind].keys() & after["jobs"][kind].keys()
        assert bool(common) == (kind in same), kind
    assert planned(root, seed=3)["jobs"]["synthesize"].keys() != after["jobs"]["synthesize"].keys()


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_merge_to_the_same_bytes(root: Path, tmp_path: Path, shards: int) -> None:
    (model,) = checkpoints(load_parameters(root, VALUES))
    split = next(model.splits())
    for system in wer_systems(model)[:2]:
        whole = hypotheses_path(model, system, split)
        hear(model, system, split)
        expected = whole.read_bytes()
        whole.unlink()
        with pytest.raises(InputError, match="cannot be read"):
            merge_shards(model, system, split, shards)
        for index in reversed(range(shards)):
            hear(model, system, split, (index, shards))
        merge_shards(model, system, split, shards)
        assert whole.read_bytes() == expected
        hypotheses_path(model, system, split, (1, shards)).write_text("")
        with pytest.raises(InputError, match="incomplete"):
            merge_shards(model, system, split, shards)


@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
def test_the_same_workflow_for_a_cluster(root: Path, cluster: str) -> None:
    pytest.importorskip(f"snakemake_executor_plugin_{cluster}")
    shutil.copytree(ROOT / "workflow" / cluster, root / "workflow" / cluster)
    run = subprocess.run(
        [ZQ, "reproduce", "--profile", "smoke", "--only", "wer", "--on", cluster, "--shards", "2",
         "--dry-run"], cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    listed = dict(
        line.split() for line in run.stdout.splitlines() + run.stderr.splitlines()
        if line.startswith(("evaluate ", "merge ", "notebook "))
    )  # fmt: skip
    assert listed == {"evaluate": "8", "merge": "4", "notebook": "1"}
    assert not (root / "results").exists()


def test_a_second_run_is_refused(root: Path) -> None:
    with alone(root / "work" / "lock"):
        run = subprocess.run(
            [ZQ, "reproduce", "--profile", "smoke"], cwd=root, capture_output=True, text=True
        )
    assert "Another run is at work" in one_sentence(run.returncode, run.stdout, run.stderr)
    with alone(root / "work" / "lock"):
        pass  # given back


def test_two_that_hear_the_same_take_turns(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each utterance is heard once: the second finds what the first has left."""
    heard: list[Path] = []
    true = recognition.audio_features

    def count(path: Path, *arguments: Any, **options: Any) -> Any:
        heard.append(path)
        return true(path, *arguments, **options)

    monkeypatch.setattr(recognition, "audio_features", count)
    recogniser = load_recogniser(root / "tiny.nemo")
    partial, manifest = tmp_path / "p.jsonl", root / "corpus" / "test.jsonl"
    results: list[Any] = []

    def hear_all() -> None:
        results.append(recognise_manifest(recogniser, manifest, partial=partial, progress=False))

    threads = [threading.Thread(target=hear_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 5
    assert results[0] == results[1] == read_hypotheses(partial)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a child that ends with it; it prints the child's number."""
    child = "from zqlib.processes import *; end_with_parent(); print(1, flush=True); input()"
    program = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_job_ends_with_its_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.is_dir()
    parent.kill()
    parent.wait()
    while child.is_dir() and "Z" not in (child / "stat").read_text().rpartition(")")[2]:
        pass
