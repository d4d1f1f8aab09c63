"""What is committed below `results/` is what a run would give, as far as this machine can tell."""

import json
from functools import cache

import pytest
from checkpoints import ROOT

from zqlib.freshness import statuses

PAGES = [
    (path.parents[1].name, path.stem)
    for path in sorted((ROOT / "results").glob("*/notebooks/*.ipynb"))
]
statuses_of = cache(statuses)


@pytest.mark.parametrize(("profile", "name"), PAGES)
def test_no_committed_result_is_stale(profile: str, name: str) -> None:
    found = statuses_of(ROOT, profile)[name]
    assert found.state == "fresh", f"{found}; run `zq reproduce --profile {profile} --only {name}`"


@pytest.mark.parametrize("profile", sorted({profile for profile, _ in PAGES}))
def test_every_committed_file_is_of_a_page(profile: str) -> None:
    folder = ROOT / "results" / profile
    pages = [name for of, name in PAGES if of == profile]
    known = {f"{kind}/{name}.json" for kind in ("costs", "provenance") for name in pages}
    for name in pages:
        known |= json.loads((folder / "provenance" / f"{name}.json").read_text())["left"].keys()
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {path.as_posix() for path in files} <= known
