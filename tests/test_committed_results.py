"""What is committed below `results/` is what a run would give, as far as this machine can tell."""

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
