"""The pages on the authors' shortcuts and on settings of the synthesis, on a tiny model."""

import json
from pathlib import Path

import pytest
from checkpoints import execute_pages, write_project

from zqlib.evaluation import paired_difference, read_hypotheses
from zqlib.experiments.shortcuts import SHORTCUTS
from zqlib.files import read_json, write_json
from zqlib.results import Record, read_records

SETTINGS = [
    {"name": "steps-0", "synthesis": {"steps": 0}},
    {"name": "percentile-99", "changes": {"range_method": "percentile", "percentile": 99}},
    {"name": "stream-8", "changes": {"stream_bits": 8}, "families": ["conformer"]},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with both pages."""
    root = write_project(tmp_path_factory.mktemp("comparisons"))
    path = root / "workflow" / "profiles" / "smoke.json"
    more = {"shortcuts": True, "settings": SETTINGS, "repeats": 2}
    write_json(path, read_json(path) | more)
    execute_pages(root, "shortcuts", "settings")
    return root


def records(root: Path, experiment: str) -> dict[str, Record]:
    found = read_records(root / "results", "smoke")
    return {r.variant: r for r in found if r.experiment == experiment and r.scheme != "float"}


def choices(record: Record) -> set[tuple[str, str]]:
    """The fields of a record's scheme and synthesis, with their values as text."""
    fields = {**record.provenance["scheme"], **record.provenance["calibration"]["synthesis"]}
    return {(name, str(value)) for name, value in fields.items()}


def text(root: Path, page: str) -> str:
    path = root / "results/smoke/notebooks" / f"{page}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    assert not any("ename" in output for cell in cells for output in cell.get("outputs", []))
    return json.dumps([cell.get("outputs") for cell in cells], ensure_ascii=False)


def test_a_shortcut_differs_from_ours_in_what_it_is_about_and_in_nothing_else(done: Path) -> None:
    found = records(done, "shortcuts")
    differing = {
        shortcut.theirs.name: {
            name
            for name, _ in choices(found[shortcut.ours.name]) ^ choices(found[shortcut.theirs.name])
        }
        for shortcut in SHORTCUTS
        if shortcut.theirs.name != "shared-range"  # Jasper's alone
    }
    assert differing == {
        "weights-cut": {"both_ends"},
        "w4-weights-cut": {"both_ends"},
        "moving-average": {"range_method"},
        "signed-sums": {"signed_sums"},
        "authors-eps": {"deviation"},
        "all-at-once": {"both_ends", "range_method", "signed_sums", "residual_sum", "deviation"},
    }
    assert set(found) == set(differing) | {"nearest", "w4", "20-batches"}


def test_shortcuts_show_in_the_logits_and_their_cost_is_paired(done: Path) -> None:
    found = records(done, "shortcuts")
    ratio = {name: record.provenance["logits_snr_db"] for name, record in found.items()}
    assert ratio["nearest"] > ratio["w4"] > ratio["w4-weights-cut"]
    assert all(0 < r.provenance["accumulator_bound"] < 2**31 for r in found.values())
    shown = text(done, "shortcuts")
    for shortcut in SHORTCUTS:
        if shortcut.theirs.name in found:
            pair = [
                read_hypotheses(done / "results/smoke" / found[variation.name].hypotheses)
                for variation in (shortcut.ours, shortcut.theirs)
            ]
            cost = paired_difference(*pair)
            low, high = cost.ci95
            assert f"{cost.delta_wer_pct:+.2f} [{low:+.2f}, {high:+.2f}]" in shown


def test_settings_are_repeated_with_seeds_that_share_no_batch(done: Path) -> None:
    found = records(done, "settings")
    names = [f"{name}-seed{seed}" for name in ("as-is", "steps-0", "percentile-99")
             for seed in (0, 1000)]  # fmt: skip
    assert sorted(found) == sorted(names)
    for name, record in found.items():
        assert record.provenance["setting"] == name.rpartition("-")[0]
        seed = record.provenance["calibration"]["synthesis"]["seed"]
        assert name.endswith(f"-seed{seed}")
    ratios = [record.provenance["logits_snr_db"] for record in found.values()]
    assert len({*ratios}) == len(ratios)
    first = choices(found["as-is-seed0"])
    assert {n for n, _ in first ^ choices(found["steps-0-seed0"])} == {"steps"}
    shown = text(done, "settings")
    pair = [found[f"steps-0-seed{seed}"].provenance["logits_snr_db"] for seed in (0, 1000)]
    assert f"{sum(pair) / 2:.1f} [{min(pair):.1f}, {max(pair):.1f}]" in shown
