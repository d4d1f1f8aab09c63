"""Speed on a GPU: measured on a double of one that is this processor, and shown where none is."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_project

from zqlib.benchmark import gpu_experiment, gpu_layers, preparation, torch_cuda, worker
from zqlib.benchmark.experiment import profile_sources, synthesis_experiment
from zqlib.benchmark.gpu_peak import DATA_SHEETS, GpuPeak
from zqlib.benchmark.plan import BenchmarkPlan
from zqlib.benchmark.record import read_benchmarks
from zqlib.errors import InputError
from zqlib.files import read_json, write_json
from zqlib.integer.backends.triton import executor, profile
from zqlib.models import load_model
from zqlib.parameters import Parameters
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.scheme import preset
from zqlib.reproduce import reproduce
from zqlib.synthesis import SynthesisConfig

SYSTEMS = ("torch-cuda:float32", "torch-cuda:bfloat16", "triton:int8")
PEAK = GpuPeak(50e3, 300e3, 700e3, 700e3, 900e3, 4000, 1)
KERNELS = "zqlib.integer.backends.triton"
KERNEL = Path("zqlib/integer/backends/triton/products.py")


class Event:
    """What takes the time on a GPU, of this processor."""

    def __init__(self, enable_timing: bool) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: "Event") -> float:
        return 1e3 * (later.seconds - self.seconds)


def run_at_once(compute: Callable[[], Any]) -> Callable[[], Any]:
    compute()
    return compute


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is this processor; kernels are interpreted."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(FloatGraph, "to", lambda self, _: self)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    for module in (executor, profile, torch_cuda):
        monkeypatch.setattr(module, "record", run_at_once)
    monkeypatch.setattr("zqlib.benchmark.engines.require_gpu", lambda _: None)
    monkeypatch.setattr(preparation, "choose_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(gpu_experiment, "measure_gpu_peak", lambda: PEAK)
    monkeypatch.setattr(gpu_layers, "_of_torch", lambda _: {"int_mm_us": None, "float16_us": 1.0})
    monkeypatch.setattr(profile, "_REPLAYS", 1)
    monkeypatch.setattr(profile.recorded_us, "__defaults__", (1,))
    monkeypatch.setattr(gpu_experiment, "_SYNTHESIS_STEPS", 1)
    monkeypatch.setattr(preparation, "_SCHEMES", ("w8a8",))
    short = SynthesisConfig(batches=1, batch_size=1, frames=40, min_frames=40, steps=1)
    monkeypatch.setattr(preparation, "REDUCED", short)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose profile has a plan for a GPU."""
    root = write_project(tmp_path, 1)
    edit_plan(root, systems=SYSTEMS)
    (root / KERNEL).parent.mkdir(parents=True)
    (root / KERNEL).write_text("1")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return root


def edit_plan(root: Path, key: str = "gpu", **changes: Any) -> None:
    path = root / "workflow/profiles/smoke.json"
    plan = {"systems": SYSTEMS, "baseline": "torch-cuda:float32", "batches": [1, 2],
            "audio_s": [0.3], "threads": [1], "repeats": 3, "max_s": 0.1}  # fmt: skip
    write_json(path, {**read_json(path), key: plan | changes})


def test_a_gpu_leaves_records_and_the_page_shows_them_where_there_is_none(
    root: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = Parameters(profile="smoke", root=root)
    done = list(gpu_experiment.measure(parameters))
    assert len(done) == 4 and done[-1] == "tiny, preparation"
    folder = root / "results/smoke"
    records = read_benchmarks(folder / "gpu")
    assert {(f"{r.engine}:{r.precision}", r.batch) for r in records} == {
        (system, batch) for system in SYSTEMS for batch in (1, 2)
    }
    for record in records:
        assert record.device == "NVIDIA H200" and record.repeats == 3
        assert record.provenance["kernels"].keys() >= {f"{KERNELS}.products", f"{KERNELS}.rows"}
        of_us = record.engine == "triton"
        assert bool(record.layers["integer"]) == of_us and bool(record.layers["float"]) != of_us
        assert record.agreement_pct > (60 if of_us else 95), record.engine
    layers = read_json(folder / "gpu-layers/tiny.json")
    for batch in ("1", "2"):
        assert {kind["kind"] for kind in layers["kinds"][batch]} > {"Conv1d depthwise", "Argmax"}
        assert all(product["triton_us"] > 0 for product in layers["products"][batch])
    predictions = layers["predictions"]
    assert len(predictions) == 6 and all(-1 < p["relative_error"] for p in predictions)
    preparations = read_json(folder / "gpu-preparation/tiny.json")
    assert [q["scheme"] for q in preparations["quantization"]] == ["w8a8"]
    assert len(preparations["synthesis"]) == 3

    assert not list(gpu_experiment.measure(parameters)), "what is there is not measured again"
    assert read_benchmarks(folder / "gpu") == records
    (folder / "gpu/tiny_triton_int8_batch2_0.3s_1threads.json").unlink()
    write_json(folder / "gpu-preparation/tiny.json", preparations | {"device": "NVIDIA T4"})
    again = list(gpu_experiment.measure(parameters))
    assert again == ["tiny, batch 2, 0.3 s", "tiny, layers", "tiny, preparation"]
    predictions = read_json(folder / "gpu-layers/tiny.json")["predictions"]
    records = read_benchmarks(folder / "gpu")
    assert [p["measured_ms"] for p in predictions] == [r.latency_ms for r in records]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shown = gpu_experiment.gpu_experiment(parameters)
    assert list(shown.records) == records and shown.current and not shown.missing
    (folder / "gpu/tiny_triton_int8_batch2_0.3s_1threads.json").unlink()
    for path in folder.glob("gpu/*_batch1_*.json"):
        path.unlink()
    shown = gpu_experiment.gpu_experiment(parameters)
    assert shown.missing == ["`tiny`, batch 1, 0.3 s: all engines",
                             "`tiny`, batch 2, 0.3 s: triton:int8"]  # fmt: skip
    (root / KERNEL).write_text("2")
    assert not gpu_experiment.gpu_experiment(parameters).current
    (page,) = reproduce(root, "smoke", "gpu")
    text = page.read_text(encoding="utf-8")
    assert "have changed since" in text and "batch 1, 0.3 s: all engines" in text
    assert "image/png" in text


def test_without_gpu_and_records_the_page_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU here and no record"):
        gpu_experiment.gpu_experiment(Parameters(profile="smoke", root=root))


def test_compiled_networks_come_last_beside_the_baseline_and_ours() -> None:
    plan = BenchmarkPlan(systems=("torch-cuda:float32", "torch-compile:float16", *SYSTEMS[1:]),
                         baseline="torch-cuda:float32")  # fmt: skip
    first, last = gpu_experiment._parts(plan)
    assert first.systems == SYSTEMS
    assert last.systems == ("torch-cuda:float32", "torch-compile:float16", "triton:int8")
    plain = replace(plan, systems=SYSTEMS)
    assert gpu_experiment._parts(plain) == [plain]


def test_the_command_stops_after_its_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(gpu_experiment, "measure", lambda _: iter(["first", "second"]))
    assert gpu_experiment.main("smoke", "0") == 0 and capsys.readouterr().out == "first\n"
    assert gpu_experiment.main("smoke") == 0 and capsys.readouterr().out == "first\nsecond\n"
    monkeypatch.undo()
    monkeypatch.chdir(root)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_experiment.main("smoke") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_plan_names_models_of_its_profile(root: Path) -> None:
    parameters = Parameters(profile="smoke", root=root)
    for names, found in (((), ["tiny"]), (("tiny",), ["tiny"])):
        plan = BenchmarkPlan(models=names)
        assert [source.name for source, _ in profile_sources(parameters, plan)] == found
    with pytest.raises(InputError, match="'huge', which is no model"):
        list(profile_sources(parameters, BenchmarkPlan(models=("huge",))))


def test_torch_is_the_model_without_masks(gpu: None, root: Path) -> None:
    """Of full utterances; in float32 exactly, in fewer bits nearly."""
    model = load_model(root / "tiny.nemo")
    features = torch.randn(2, model.front_end.config.n_mels, 64)
    expected = model.network(features, torch.tensor([64, 64]))[0].argmax(-1)
    graph = fold(model.network, preset("w8a8"))
    with torch.no_grad():
        assert torch.equal(torch_cuda.full_network(graph, torch.float32)(features), expected)
        low = torch_cuda.full_network(graph, torch.bfloat16)(features)
    assert (low == expected).float().mean() > 0.9


def test_a_worker_of_the_gpu_waits_in_this_process(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        runs = 0

        def run(self) -> int:
            self.runs += 1
            return self.runs

        def tokens(self, result: int) -> int:
            return result

        def layers(self) -> dict[str, int]:
            return {"integer": 1, "float": 0}

    engine = Engine()
    monkeypatch.setattr(worker, "load_engine", lambda _: lambda: engine)
    inputs: Any = type("Inputs", (), {"system": "triton:int8"})
    with worker.GpuWorker(inputs) as one:
        before = engine.runs
        assert len(one.measure(3)) == 3 and engine.runs == before + 4
        assert one.layers() == {"integer": 1, "float": 0} and one.memory_mb() == 0


def test_the_data_sheet_has_what_the_plan_measures() -> None:
    machine = DATA_SHEETS["NVIDIA H200"]
    for precision in ("float32", "tf32", "float16", "bfloat16", "int8"):
        assert machine.matrix_gop_per_s[precision] >= machine.vector_gop_per_s[precision]


def test_steps_of_the_synthesis_are_timed_as_they_are_and_as_conv1d(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []

    def seconds(model: Any, config: SynthesisConfig) -> float:
        orders.append((torch.channels_last, config.bfloat16))
        return 1.0 + 0.25 * config.steps

    edit_plan(root, "benchmark", systems=("cpu:int8",), baseline="cpu:int8")
    monkeypatch.setattr(preparation, "_seconds", seconds)
    last, threads = torch.channels_last, torch.get_num_threads()
    (record,) = synthesis_experiment(Parameters(profile="smoke", root=root))
    (path,) = root.glob("results/smoke/synthesis-speed/*/tiny.json")
    assert record == read_json(path)
    assert [(s["formulation"], s["steps_per_s"]) for s in record["speeds"]] == [
        ("Conv1d", 4), ("channels-last", 4), ("channels-last, bfloat16", 4),
    ]  # fmt: skip
    assert orders[::2] == [(torch.contiguous_format, False), (last, False), (last, True)]
    assert torch.channels_last is last and torch.get_num_threads() == threads
