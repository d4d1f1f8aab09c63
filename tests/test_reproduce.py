"""`zq reproduce` on a tiny project: whole results or none, resumable, and nothing done twice."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from checkpoints import (
    listen_to_interrupts,
    write_audio,
    write_checkpoint,
    write_corpus,
    write_project,
)
from nbformat.v4 import new_code_cell, new_notebook

from zqlib import reproduce as module
from zqlib.corpora.manifest import read_manifest
from zqlib.digests import data_digest
from zqlib.errors import InputError
from zqlib.evaluation import read_hypotheses
from zqlib.experiments.wer import wer_experiment
from zqlib.files import sha256_file, write_json
from zqlib.freshness import note
from zqlib.parameters import Parameters
from zqlib.reproduce import RunError, reproduce
from zqlib.results import Record, read_records

ZQ = str(Path(sys.executable).parent / "zq")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was reproduced without a disturbance."""
    root = write_project(tmp_path_factory.mktemp("done"))
    reproduce(root, "smoke")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project in which nothing has run."""
    return write_project(tmp_path)


ALL = ["synthesis", "wer", "layers", "ablation", "exports"]
PAGE = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def contents(folder: Path) -> dict[str, bytes]:
    """All results but the costs, which are measured and never the same."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
        if path.parent.name != "costs"
    }


def cells(path: Path) -> list[Any]:
    return list(nbformat.read(path, as_version=4).cells)


def test_records_say_what_was_run_and_where_it_came_from(done: Path) -> None:
    records = read_records(done / "results", "smoke")
    found = {(r.scheme, r.calibration, r.engine): r for r in records if r.experiment == "wer"}
    assert set(found) == {
        ("float", "none", "float"),
        ("w8a8", "synthetic", "reference"),
        ("w8a8", "noise", "cpu"),
        ("w4a8", "synthetic", "cpu"),
    }
    utterances = read_manifest(done / "corpus" / "test.jsonl")
    for record in records:
        assert record.profile == "smoke" and record.experiment in ("wer", "ablation")
        assert (record.model, record.family) == ("tiny", "quartznet")
        assert (record.corpus, record.split) == ("noises", "test")
        assert record.caveats == ("subset of 2 of 9", "noises", "random weights")
        assert record.utterances == len(utterances) == 2
        assert record.words == sum(len(u.text.split()) for u in utterances)
        assert record.wer_ci95[0] <= record.wer_pct <= record.wer_ci95[1]
        assert record.provenance["model_sha256"] == sha256_file(done / "tiny.nemo")
        assert record.provenance["data_sha256"] == data_digest(done / "corpus" / "test.jsonl")
        stored = read_hypotheses(done / "results" / "smoke" / record.hypotheses)
        assert [h.reference for h in stored] == [u.text for u in utterances]
    assert found["float", "none", "float"].delta_wer_pct is None
    zero_shot = found["w8a8", "synthetic", "reference"]
    assert zero_shot.delta_wer_pct is not None and zero_shot.delta_ci95 is not None
    assert zero_shot.provenance["scheme"]["weight_bits"] == 8
    assert zero_shot.provenance["calibration"]["synthesis"]["steps"] == 5
    noise = found["w8a8", "noise", "cpu"]
    assert noise.provenance["calibration"]["kind"] == "noise"
    assert zero_shot.size_mb > 0


def test_a_whole_notebook_leaves_its_cost_and_a_repetition_only_its_own_records(done: Path) -> None:
    costs = done / "results/smoke/costs"
    assert {path.stem for path in costs.iterdir()} == set(ALL)
    before = (costs / "wer.json").read_bytes()
    cost = json.loads(before)
    assert cost["duration_s"] > 0 and cost["peak_memory_mb"] > 100  # torch alone needs more
    assert (cost["profile"], cost["notebook"]) == ("smoke", "wer")
    records, hypotheses = (done / "results/smoke" / kind for kind in ("records", "hypotheses"))
    kept = [{path.name for path in folder.iterdir()} for folder in (records, hypotheses)]
    earlier = json.loads(min(records.glob("wer_*")).read_text())
    shutil.copy(done / "results/smoke" / earlier["hypotheses"], hypotheses / "earlier.jsonl")
    earlier["hypotheses"] = "hypotheses/earlier.jsonl"
    write_json(records / "wer_of_an_earlier_scheme.json", earlier)
    reproduce(done, "smoke", "wer", force=True)
    assert (costs / "wer.json").read_bytes() == before
    assert [{path.name for path in folder.iterdir()} for folder in (records, hypotheses)] == kept


def test_the_synthesis_leaves_its_record(done: Path) -> None:
    record = json.loads((done / "results" / "smoke" / "synthesis" / "tiny.json").read_text())
    assert record["config"]["steps"] == 5
    assert len(record["loss"]) == 1 and len(record["loss"][0]) == 6
    assert record["loss"][0][-1] < record["loss"][0][0]
    assert sum(layer["initial"] for layer in record["layers"].values()) == pytest.approx(
        record["loss"][0][0], rel=1e-4
    )
    assert record["provenance"]["model_sha256"] == sha256_file(done / "tiny.nemo")


def test_the_ablations_stand_beside_the_first_scheme(done: Path) -> None:
    records = [r for r in read_records(done / "results", "smoke") if r.experiment == "ablation"]
    found = {(r.scheme, r.variant): r for r in records}
    assert set(found) == {("float", ""), ("w8a8", ""), ("w8a8", "mse")}  # no stream to narrow
    methods = [found["w8a8", name].provenance["scheme"]["range_method"] for name in ("", "mse")]
    assert methods == ["minmax", "mse"]
    assert {r.engine for r in records if r.scheme != "float"} == {"cpu"}


def test_the_layers_leave_their_record(done: Path) -> None:
    record = json.loads((done / "results/smoke/layers/tiny.json").read_text())
    assert (record["corpus"], record["split"], record["utterances"]) == ("noises", "test", 2)
    assert record["caveats"] == ["subset of 2 of 9", "noises", "random weights"]
    assert set(record["tensors"]) == {"w8a8", "w4a8"}
    fine, coarse = (record["tensors"][scheme] for scheme in ("w8a8", "w4a8"))
    names = [tensor["name"] for tensor in fine]
    assert names == [tensor["name"] for tensor in coarse]
    assert names[0] == "features" and names[-1] == "logits"
    assert all(f["local_snr_db"] >= c["local_snr_db"] for f, c in zip(fine, coarse, strict=True))


@pytest.mark.parametrize("name", ["synthesis", "wer", "layers", "ablation"])
def test_notebooks_are_executed_and_show_their_records(done: Path, name: str) -> None:
    executed = cells(done / "results" / "smoke" / "notebooks" / f"{name}.ipynb")
    code = [cell for cell in executed if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    hidden = [cell.source for cell in code if "remove-cell" in cell.metadata.get("tags", [])]
    assert len(hidden) == 2 and 'profile = "quick"' in hidden[0]
    assert 'profile = "smoke"' in hidden[1]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = json.dumps(outputs)
    assert "random weights" in text
    for record in read_records(done / "results"):
        if record.experiment == name and (name == "wer" or record.scheme != "float"):
            assert f"{record.wer_pct:.2f}" in text


def test_a_repetition_gives_the_same_bytes(done: Path) -> None:
    before = contents(done / "results")
    # notebooks and what they are made from, synthesis, layers, exports, word errors, hypotheses
    assert len(before) == 5 + 5 + 1 + 1 + 1 + (4 + 3) + (4 + 2)
    reproduce(done, "smoke", force=True)
    assert contents(done / "results") == before


def test_what_is_done_is_not_run_again(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_snakemake", None)
    assert [path.stem for path in reproduce(done, "smoke")] == ALL
    assert capsys.readouterr().out.count("is up to date") == len(ALL)


@pytest.fixture
def executed(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the notebooks that run; they only pretend to."""
    names: list[str] = []

    def pretend(root: Path, on: str | None, dry_run: bool) -> None:
        plan = json.loads((root / "work/plan.json").read_text())
        results = root / "results/smoke"
        for stamp in plan["targets"]:
            work = plan["jobs"]["notebook"][Path(stamp).name]["work"]
            name = work["notebook"]
            names.append(name)
            write_json(results / "notebooks" / f"{name}.ipynb", PAGE)
            if name in ("synthesis", "layers"):
                write_json(results / name / "tiny.json", {})
            else:
                heard = f"hypotheses/{name}.jsonl"
                write_json(results / "records" / f"{name}_tiny.json", {"hypotheses": heard})
                write_json(results / heard, {})
            note(results, name, work["made_from"])
            write_json(root / stamp, {})

    monkeypatch.setattr(module, "_snakemake", pretend)
    return names


def test_nothing_to_score_is_said(root: Path) -> None:
    profile = json.loads((root / "workflow/profiles/smoke.json").read_text())
    profile["models"][0]["corpora"] = ["other"]
    profile["corpora"].append(profile["corpora"][0] | {"corpus": "other", "split": "dev"})
    (root / "workflow/profiles/smoke.json").write_text(json.dumps(profile))
    with pytest.raises(InputError, match="choose others"):
        wer_experiment(Parameters("smoke", splits=("test",), root=root))


def test_real_recordings_can_stand_beside_the_synthetic_ones(
    root: Path, executed: list[str]
) -> None:
    path = root / "workflow/profiles/smoke.json"
    recordings = write_corpus(root / "recordings", 2)
    real = {"calibrations": ["real"], "calibration_manifest": "recordings/test.jsonl"}
    path.write_text(json.dumps(json.loads(path.read_text()) | real))
    _, record, _ = wer_experiment(Parameters("smoke", root=root))
    assert (record.scheme, record.calibration) == ("w8a8", "real")
    assert record.provenance["calibration"] == {
        "kind": "real", "utterances": 2, "manifest_sha256": sha256_file(recordings),
    }  # fmt: skip
    reproduce(root, "smoke", "wer")
    write_audio(root / "recordings/audio/0.wav", 0.4, seed=9)
    reproduce(root, "smoke", "wer")
    assert executed == ["wer"] * 2
    recordings.unlink()
    with pytest.raises(InputError, match=r"recordings/test\.jsonl does not exist"):
        reproduce(root, "smoke", "wer")


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("tiny model", "small model"))


def edit_cell(root: Path, kind: str, addition: str) -> None:
    path = root / "notebooks/wer.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = [cell for cell in notebook.cells if cell.cell_type == kind][-1]
    cell.source += f"\n{addition}"
    nbformat.write(notebook, path)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda root: None, []),
    "a model": (lambda root: write_checkpoint(root / "tiny.nemo", seed=1), ALL),
    "the profile": (lambda root: edit(root / "workflow/profiles/smoke.json"), ALL),
    "a recording": (lambda root: write_audio(root / "corpus/audio/0.wav", 0.4, seed=9), ALL),
    "the code of a notebook": (lambda root: edit_cell(root, "code", "1 + 1"), ["wer"]),
    "a comment in a notebook": (lambda root: edit_cell(root, "code", "# more"), []),
    "the text of a notebook": (lambda root: edit_cell(root, "markdown", "More."), []),
    "an executed notebook": (
        lambda root: (root / "results/smoke/notebooks/wer.ipynb").write_text("edited"), ["wer"]),
    "a record lost": (lambda root: (root / "results/smoke/records/wer_tiny.json").unlink(),
                      ["wer"]),
    "hypotheses edited": (
        lambda root: (root / "results/smoke/hypotheses/wer.jsonl").write_text("x"), ["wer"]),
    "a synthesis lost": (lambda root: (root / "results/smoke/synthesis/tiny.json").unlink(),
                         ["synthesis"]),
    "the layers lost": (lambda root: (root / "results/smoke/layers/tiny.json").unlink(),
                        ["layers"]),
    "an ablation lost": (
        lambda root: (root / "results/smoke/records/ablation_tiny.json").unlink(), ["ablation"]),
    "a note cut": (
        lambda root: (root / "results/smoke/provenance/wer.json").write_text("{"), ["wer"]),
    "a note of another kind": (
        lambda root: (root / "results/smoke/provenance/wer.json").write_text("[1]"), ["wer"]),
    "what is in work": (lambda root: (root / "work").rename(root / "old"), ALL),
    "all results": (lambda root: (root / "results").rename(root / "old"), ALL),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_a_change_touches_runs_again(
    root: Path, executed: list[str], change: str
) -> None:
    act, expected = CHANGES[change]
    reproduce(root, "smoke")
    assert executed == ALL
    executed.clear()
    act(root)
    reproduce(root, "smoke")
    assert executed == expected
    executed.clear()
    reproduce(root, "smoke")
    assert executed == []


def test_a_relative_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_notebook(root, "import os; assert os.path.samefile('.', os.environ['ZQ_TEST_ROOT'])")
    monkeypatch.setenv("ZQ_TEST_ROOT", str(root))
    monkeypatch.chdir(root.parent)
    (output,) = reproduce(Path(root.name), "smoke", "exports")
    assert output == Path(root.name) / "results/smoke/notebooks/exports.ipynb" and output.is_file()


def test_parameters_count_as_a_change(root: Path, executed: list[str]) -> None:
    for parameters in ({}, {"seed": 1}, {"seed": 1}, {"seed": 2}, {"splits": ["test"]}):
        reproduce(root, "smoke", "wer", parameters)
    assert executed == ["wer"] * 4
    reproduce(root, "smoke", "wer", {"splits": ["test"]}, force=True)
    assert executed == ["wer"] * 5


def test_what_is_left_out_stays_as_it_is(root: Path, executed: list[str]) -> None:
    reproduce(root, "smoke", without=["wer", "exports"])
    assert executed == [name for name in ALL if name not in ("wer", "exports")]
    reproduce(root, "smoke", "wer", without=["exports"])
    assert executed[-1] == "wer"
    for name, message in (("plots", "'plots' is unknown"), ("wer", "both asked for and left out")):
        with pytest.raises(InputError, match=message):
            reproduce(root, "smoke", "wer", without=[name])


@pytest.mark.parametrize(
    ("only", "parameters", "message"),
    [
        ("plots", {}, "notebook 'plots' is unknown"),
        ("budget", {}, "names nothing to compare for budget"),
        ("benchmark", {}, "names nothing to compare for benchmark"),
        ("ablation", {"models": ["other"]}, "no model 'other'"),
        (None, {"sed": 4}, "'sed' is unknown"),
        (None, {"profile": "local"}, "--profile"),
        (None, {"seed": "x"}, "seed an integer"),
        (None, {"models": ["other"]}, "no model 'other'"),
        (None, {"splits": ["other"]}, "no split 'other'"),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(
    root: Path, executed: list[str], only: str | None, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reproduce(root, "smoke", only, parameters)
    assert executed == [] and not (root / "results").exists()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("tiny.nemo", r"tiny\.nemo does not exist"),
        ("corpus/test.jsonl", r"test\.jsonl does not exist"),
        ("corpus/audio/1.wav", r"1\.wav, named by"),
    ],
)
def test_a_missing_input_is_named(root: Path, executed: list[str], lost: str, message: str) -> None:
    (root / lost).unlink()
    with pytest.raises(InputError, match=message):
        reproduce(root, "smoke")
    assert executed == []


def replace_notebook(root: Path, *sources: str) -> None:
    """Put other cells, after those parameters, in the place of `exports`, which needs no job."""
    first = new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[first, *map(new_code_cell, sources)], metadata=kernel)
    nbformat.write(notebook, root / "notebooks" / "exports.ipynb")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "raise ValueError('first line\\nsecond line')",
            r"exports\.ipynb failed in cell 3: ValueError",
        ),
        ("import os; os._exit(1)", r"kernel of exports\.ipynb"),
    ],
    ids=["a failing cell", "a dead kernel"],
)
def test_a_failure_leaves_nothing(root: Path, source: str, message: str) -> None:
    replace_notebook(root, source)
    for _ in range(2):  # the second time, too: a failure is not taken for done
        with pytest.raises(RunError, match=message):
            reproduce(root, "smoke", "exports")
        assert contents(root / "results") == {}
        assert list((root / "results/smoke/notebooks").iterdir()) == []
        assert contents(root / "work/jobs/notebook") == {}


def test_an_executed_notebook_tells_no_address(root: Path) -> None:
    replace_notebook(root, "object()")
    (output,) = reproduce(root, "smoke", "exports")
    assert "<object>" in output.read_text()


def test_a_failure_keeps_the_last_success(root: Path) -> None:
    replace_notebook(root, "print(profile)")
    (output,) = reproduce(root, "smoke", "exports")
    before = output.read_bytes()
    assert b"smoke" in before
    replace_notebook(root, "1 / 0")
    with pytest.raises(RunError):
        reproduce(root, "smoke", "exports")
    assert output.read_bytes() == before


def begun(root: Path) -> dict[str, Callable[[], bool]]:
    """Moments of a run, by what it has left so far."""
    partials, results = root / "work/hypotheses", root / "results/smoke"
    return {
        "a job begun": lambda: (root / "work/logs").is_dir(),
        "a program written": lambda: any((root / "work").glob("programs/*.zq")),
        "one utterance heard": lambda: any(
            path.read_bytes().count(b"\n") >= 1 for path in partials.glob("*w8a8*")
        ),
        "two records written": lambda: len(list(results.glob("records/*.json"))) >= 2,
    }


def kill_when(root: Path, moment: Callable[[], bool]) -> None:
    """Start `zq reproduce` and end it, unasked, at a moment."""
    command = [ZQ, "reproduce", "--profile", "smoke", "--only", "wer"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
        while not moment():
            assert process.poll() is None, (root / "log").read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()


def small_files() -> None:
    """From here on no file may grow beyond 36 KiB, which a page does: the disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (36 << 10, 36 << 10))


def test_a_killed_run_and_a_full_disk_resume_to_the_same_bytes(done: Path, root: Path) -> None:
    for moment in begun(root).values():
        kill_when(root, moment)
        assert not list(root.glob("results/smoke/notebooks/*.ipynb"))
        for path in root.glob("results/smoke/records/*.json"):
            Record.from_json(json.loads(path.read_text()))  # whole
    command = [ZQ, "reproduce", "--profile", "smoke", "--only", "wer"]
    full = subprocess.run(command, cwd=root, capture_output=True, text=True, preexec_fn=small_files)
    assert full.returncode == 1 and "too large" in full.stderr.splitlines()[-1]
    assert not list(root.glob("results/smoke/notebooks/*.ipynb"))
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    of_page = [r for r in read_records(done / "results", "smoke") if r.experiment == "wer"]
    heard = {f"smoke/{record.hypotheses}" for record in of_page}
    expected = {
        name: content
        for name, content in contents(done / "results").items()
        if "/wer" in name or name in heard
    }
    assert contents(root / "results") == expected


def test_an_interruption_is_one_sentence(root: Path) -> None:
    replace_notebook(root, "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(600)")
    process = subprocess.Popen(
        [ZQ, "reproduce", "--profile", "smoke", "--only", "exports"], cwd=root,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
        preexec_fn=listen_to_interrupts,
    )  # fmt: skip
    while not (root / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("zq: interrupted")
    assert "zqlib/workflow.py" not in error  # no traceback of ours; the kernel may print its own
    assert contents(root / "results") == {}
