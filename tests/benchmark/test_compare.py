"""Engines in processes of their own: turns, records, and what happens when one cannot run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import onnx
import pytest
from checkpoints import ROOT, write_checkpoint, write_project
from tqdm import tqdm

from zqlib.benchmark import engines, experiment
from zqlib.benchmark.compare import compare, files_of_case, measure_rounds
from zqlib.benchmark.peak import Peak
from zqlib.benchmark.plan import BenchmarkPlan, Case, parse_system
from zqlib.benchmark.prepare import case_features, write_files
from zqlib.benchmark.record import BenchmarkRecord, read_benchmarks, write_benchmark
from zqlib.benchmark.sources import Source
from zqlib.benchmark.speeds import speed_experiment
from zqlib.errors import InputError
from zqlib.export.inspection import count_layers
from zqlib.files import read_json, write_json
from zqlib.machines import machine_folder
from zqlib.parameters import Parameters
from zqlib.reproduce import reproduce
from zqlib.results import device_name

ENGINES = ("torch:float32", "onnxruntime:int8", "openvino:int8", "cpu:int8")
PLAN = BenchmarkPlan(ENGINES, ENGINES[0], audio_s=(0.5,), threads=(1,), repeats=6)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[BenchmarkRecord]:
    """The records of a tiny model on four engines."""
    path = write_checkpoint(tmp_path_factory.mktemp("bench") / "tiny.nemo")
    plan = replace(PLAN, batches=(2,))
    (records,) = compare(plan, Source(path), caveats=("random",), progress=False)
    return records


def test_every_engine_leaves_a_record(measured: list[BenchmarkRecord]) -> None:
    assert tuple(f"{r.engine}:{r.precision}" for r in measured) == ENGINES
    for record in measured:
        assert (record.model, record.family, record.batch) == ("tiny", "quartznet", 2)
        assert (record.audio_s, record.threads, record.caveats) == (0.5, 1, ("random",))
        assert record.repeats == 6
        assert 0 < record.latency_p10_ms <= record.latency_ms <= record.latency_p90_ms
        assert record.rtfx == pytest.approx(1e3 * 2 * 0.5 / record.latency_ms)
        assert record.load_ms > 0 and record.peak_memory_mb > 0
        assert record.ratio_ci95[0] <= record.ratio_ci95[1]
        assert 0 <= record.others_pct <= 100
        assert record.provenance["plan"]["repeats"] == 6
        assert record.provenance["engines"].keys() == {"onnxruntime", "openvino", "torch"}
    baseline, *others = measured
    assert baseline.ratio_ci95 == (1, 1) and baseline.agreement_pct == 100
    for record in others:
        assert record.agreement_pct > 60, record.engine  # weights are random, ranges from noise


def test_int8_is_int8(measured: list[BenchmarkRecord]) -> None:
    by_engine = {r.engine: r.layers for r in measured}
    layers = by_engine["cpu"]["integer"]
    assert by_engine["cpu"]["float"] == by_engine["torch"]["integer"] == 0
    for engine in ("onnxruntime", "openvino"):  # the decoder may be a float product
        assert by_engine[engine]["integer"] >= layers - 1, engine


def test_linear_layers_stay_integers_in_onnx_runtime(tmp_path: Path) -> None:
    """With known shapes it would make them a float Gemm; a Conformer is full of them."""
    source = Source(ROOT / "zqlib/checkpoints/mini-conformer.nemo")
    model, system = source.load(), parse_system("onnxruntime:int8")
    write_files(model, [system], tmp_path)
    features, _ = case_features(model, Case(1, 0.5, 1))
    file = files_of_case([system], tmp_path, features)[system]
    assert file and count_layers(onnx.load(file)).float == ()


def test_a_record_survives_json(measured: list[BenchmarkRecord], tmp_path: Path) -> None:
    for record in measured:
        write_benchmark(tmp_path, record)
    assert sorted(read_benchmarks(tmp_path), key=str) == sorted(measured, key=str)
    value = json.loads(json.dumps(measured[0].to_json()))
    with pytest.raises(InputError, match="'speed'"):
        BenchmarkRecord.from_json({**value, "speed": 1})
    with pytest.raises(InputError, match="a threads of the wrong type"):
        BenchmarkRecord.from_json({**value, "threads": "one"})


class Metronome:
    """A worker whose runs take a given time; it notes whose turn it was."""

    def __init__(self, name: str, run_ms: float, turns: list[str]) -> None:
        self.name, self.run_ms, self.turns = name, run_ms, turns
        self.loaded = SimpleNamespace(first_run_ms=run_ms)
        self.warmed = 0

    def measure(self, repeats: int, warm_up: bool) -> list[float]:
        self.turns.append(self.name)
        self.warmed += warm_up
        return [self.run_ms] * repeats


def test_engines_take_turns_until_each_has_enough() -> None:
    turns: list[str] = []
    times = {"fast": 1, "slow": 900, "slowest": 3000, "endless": 47_000}
    workers: Any = [Metronome(name, run_ms, turns) for name, run_ms in times.items()]
    plan = BenchmarkPlan(repeats=30, max_s=10)
    fast, slow, slowest, endless = measure_rounds(workers, plan, tqdm(disable=True))
    assert [*map(len, fast)] == [3] * 10
    assert [*map(len, slow)] == [3] * 5  # 13.5 s of the 10 that suffice, and no fewer rounds
    assert [*map(len, slowest)] == [*map(len, endless)] == [1] * 5
    assert turns[:20] == [*times] * 5 and set(turns[20:]) == {"fast"}
    assert [worker.warmed for worker in workers] == [10, 5, 5, 0]


@pytest.mark.parametrize(
    ("engine", "extra"), [("openvino", "export"), ("tensorrt", "gpu"), ("triton", "triton")]
)
def test_a_missing_library_is_named_before_anything_runs(
    zq: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    extra: str,
) -> None:
    def version(name: str) -> str:
        raise engines.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(engines.metadata, "version", version)
    path = write_checkpoint(tmp_path / "tiny.nemo")
    status, out, err = zq("bench", path, "--engine", f"{engine}:int8", "-o", tmp_path / "records")
    assert status == 1 and f"{engine} is missing; run `pip install 'zqlib[{extra}]'`" in err
    assert out == "" and not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny.nemo", "--engine", "cpu:int4"), "use cpu:int8"),
        (("tiny.nemo", "--threads", "4096"), "give fewer"),
        (("tiny.nemo", "--baseline", "cpu:int9"), "'cpu:int9' is not among"),
        (("absent.nemo", "--engine", "cpu:int8"), "absent.nemo"),
        (("--engine", "cpu:int8"), "one of the two"),
        (("--random", "jasper"), "'jasper' is unknown"),
        (("tiny.nemo", "--format", "xml"), "'xml' is unknown"),
    ],
)
def test_wrong_requests_are_one_sentence(
    zq: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "tiny.nemo")
    status, out, err = zq("bench", *arguments)
    assert status == 1 and out == "" and message in err and err.count("\n") == 1


def test_the_command_prints_a_table(
    zq: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "tiny.nemo")
    options = ("--engine", "cpu:int8", "--audio-s", "0.5", "--repeats", "3", "--quiet")
    status, out, _ = zq("bench", path, *options, "-o", tmp_path / "records")
    assert status == 0 and "tiny, batch 1, 0.5 s, 1 threads" in out and "cpu:int8" in out
    (record,) = read_benchmarks(tmp_path / "records")
    assert f"{record.latency_ms:.2f}" in out


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose profile has a benchmark."""
    root = write_project(tmp_path_factory.mktemp("project"), 1)
    path = root / "workflow/profiles/smoke.json"
    systems = ["torch:float32", "cpu:int8"]
    plan = {"systems": systems, "baseline": systems[0], "audio_s": [0.5], "threads": [1],
            "repeats": 3}  # fmt: skip
    write_json(path, {**read_json(path), "benchmark": plan})
    return root


def test_the_notebook_shows_what_was_measured_here_and_elsewhere(project: Path) -> None:
    results = project / "results/smoke"
    elsewhere = "CPU Babbage with steam, 1 cores"
    (path,) = reproduce(project, "smoke", "benchmark")
    for kind in ("benchmark", "roofline", "synthesis-speed"):
        for measured in machine_folder(results / kind).iterdir():
            record = read_json(measured) | {"device": elsewhere, "commit": "of 1843"}
            if "latency_ms" in record:
                record["latency_ms"] = 98765.4
            write_json(results / kind / "babbage" / measured.name, record)
    assert elsewhere not in path.read_text()

    (path,) = reproduce(project, "smoke", "benchmark", force=True)
    text = json.dumps([c.get("outputs") for c in nbformat.read(path, as_version=4).cells])
    records = read_benchmarks(machine_folder(results / "benchmark"))
    assert [r.engine for r in records] == ["cpu", "torch"]
    for record in records:
        assert f"{record.latency_ms:.1f}" in text
    assert "simulated" in text and "up to 2.35" in text and "random weights" in text
    assert "98765.4" in text and f"**{elsewhere}**, measured at commit of 1843." in text
    assert text.count("image/png") == 4

    here, babbage = speed_experiment(Parameters(profile="smoke", root=project))
    assert (here.device, babbage.device) == (device_name(), elsewhere)
    assert list(here.records) == sorted(records, key=lambda r: r.engine, reverse=True)
    assert not babbage.current


def test_what_was_measured_is_not_measured_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = Parameters(profile="smoke", root=project)
    first = experiment.benchmark_experiment(parameters)
    monkeypatch.setattr(experiment, "compare", None)
    assert experiment.benchmark_experiment(parameters) == first
    peak = Peak(threads=1, float32=50, bfloat16=100, int8=200, copy_gb_per_s=10)
    monkeypatch.setattr(experiment, "measure_peak", lambda threads: peak)
    (record,) = experiment.roofline_experiment(parameters, first)
    assert record == read_json(machine_folder(project / "results/smoke/roofline") / "tiny.json")
    errors = {(v["engine"], v["precision"]): v["relative_error"] for v in record["validation"]}
    assert errors.keys() == {("torch", "float32"), ("cpu", "int8")}
    assert all(error > -1 for error in errors.values())
    predictions = record["simulated"]["predictions"]
    assert len(predictions) == 9
    assert all(p["int8_ms"] < p["float16_ms"] < p["float32_ms"] for p in predictions)
