"""The page on methods for fewer bits, on a tiny model."""

import json
import math
from pathlib import Path

import pytest
import torch
from checkpoints import execute_pages, write_corpus, write_project

from zqlib.experiments.methods import pareto_front, signal_to_error_db
from zqlib.files import read_json, write_json
from zqlib.quantization.scheme import usual_scheme
from zqlib.results import Record, read_records

METHODS = [
    {"name": "plain", "schemes": ["w8a8", "w4a8"]},
    {"name": "groups", "changes": {"weight_group": 4}, "schemes": ["w8a8", "w4a8"]},
    {"name": "nothing", "changes": {"bias_correction": False}, "schemes": ["w4a8"]},
    {"name": "other", "changes": {"equalize": True}, "families": ["conformer"]},
    {"name": "mixed", "changes": {"weight_budget": 5.0}, "schemes": ["w4a8"]},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the page."""
    root = write_project(tmp_path_factory.mktemp("methods"))
    path = root / "workflow" / "profiles" / "smoke.json"
    write_corpus(root / "recordings", 2)
    real = {"calibrations": ["real"], "calibration_manifest": "recordings/test.jsonl"}
    write_json(path, read_json(path) | real | {"methods": METHODS})
    execute_pages(root, "methods")
    return root


@pytest.fixture(scope="module")
def found(done: Path) -> dict[str, Record]:
    records = read_records(done / "results", "smoke")
    return {r.variant: r for r in records if r.experiment == "methods" and r.scheme != "float"}


def test_every_method_at_its_widths_once(found: dict[str, Record]) -> None:
    """A method that changes nothing is left out, and so is one of another family."""
    assert {name: record.scheme for name, record in found.items()} == {
        "plain-w8a8": "w8a8", "plain-w4a8": "w4a8", "groups-w8a8": "w8g4a8",
        "groups-w4a8": "w4g4a8", "mixed-w4a8": "w5.0a8",
        "usual-w8a8": "w8a8", "usual-w4a8": "w4a8",
        "recordings-w8a8": "w8a8", "recordings-w4a8": "w4a8",
    }  # fmt: skip
    for name, record in found.items():
        method, width = record.provenance["method"], record.provenance["width"]
        assert name == f"{method}-{width}"
        assert record.provenance["scheme"]["equalize"] is (method in ("usual", "recordings"))
        assert record.calibration == ("real" if method == "recordings" else "synthetic")
    assert found["usual-w4a8"].provenance["scheme"] == usual_scheme("w4a8", "quartznet").to_json()


def test_fewer_bits_cost_less_and_err_more(found: dict[str, Record]) -> None:
    plain, few = found["plain-w8a8"].provenance, found["plain-w4a8"].provenance
    assert few["bops"] == plain["bops"] / 2
    ratio = {name: record.provenance["held_out_snr_db"] for name, record in found.items()}
    assert ratio["plain-w8a8"] == ratio["groups-w8a8"] > ratio["mixed-w4a8"] > ratio["plain-w4a8"]
    assert ratio["groups-w4a8"] > ratio["plain-w4a8"]


def test_the_page_names_what_was_found_without_data(done: Path, found: dict[str, Record]) -> None:
    cells = json.loads((done / "results/smoke/notebooks/methods.ipynb").read_text())["cells"]
    assert not any("ename" in output for cell in cells for output in cell.get("outputs", []))
    few = {
        r.provenance["held_out_snr_db"]: r
        for r in found.values()
        if r.provenance["width"] == "w4a8" and r.calibration == "synthetic"
    }
    best = few[max(few)]
    low, high = best.delta_ci95 or (0, 0)
    shown = "".join(next(o for o in cells[-1]["outputs"] if "text/html" in o["data"])
                    ["data"]["text/html"])  # fmt: skip
    assert best.provenance["method"] in shown
    assert f"{best.delta_wer_pct:+.2f} [{low:+.2f}, {high:+.2f}]" in shown


def test_signal_to_error_asks_for_the_best_step_and_for_valid_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2, 5, 8, generator=generator)
    real -= real.mean(1, keepdim=True)
    error = torch.randn(2, 5, 8, generator=generator)
    error -= error.mean(1, keepdim=True)
    error -= (error * real).sum() / real.square().sum() * real  # no step would make it less
    found = real + 0.1 * error
    expected = 10 * math.log10(float(real.square().sum() / (0.1 * error).square().sum()))
    whole = signal_to_error_db(real, found / 0.003, [8, 8])
    assert whole == pytest.approx(expected, abs=0.1)
    assert signal_to_error_db(real, found / 7, [8, 8]) == pytest.approx(whole)
    assert signal_to_error_db(real, found + torch.randn(2, 1, 8), [8, 8]) == pytest.approx(whole)
    beyond = found.clone()
    beyond[1, :, 5:] = 99
    part = signal_to_error_db(real, found, [8, 5])
    assert signal_to_error_db(real, beyond, [8, 5]) == part != whole


def test_the_front_is_of_those_that_nothing_cheaper_equals() -> None:
    costs, errors = [3.0, 1.0, 2.0, 1.0, 4.0, 2.0], [1.0, 5.0, 4.0, 6.0, 1.0, 4.0]
    assert pareto_front(costs, errors) == [1, 2, 0]
    assert pareto_front([], []) == []
