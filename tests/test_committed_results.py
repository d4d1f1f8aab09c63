"""What is committed below `results/` is what a run would give, as far as this machine can tell."""

import pytest
from checkpoints import ROOT

from zqlib.freshness import status

PAGES = [
    (path.parents[1].name, path.stem)
    for path in sorted((ROOT / "results").glob("*/notebooks/*.ipynb"))
]


@pytest.mark.parametrize(("profile", "name"), PAGES)
def test_no_committed_result_is_stale(profile: str, name: str) -> None:
    found = status(ROOT, profile, name)
    assert found.state == "fresh", f"{found}; run `zq reproduce --profile {profile} --only {name}`"
