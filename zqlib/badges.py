"""A Sphinx extension: every page of results says whether it is what a run would give today."""

import json
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from zqlib.errors import InputError
from zqlib.freshness import Status, statuses

__all__ = ["badge", "setup"]

_SAYS = {
    "fresh": ("tip", "Fresh: what this page is made from has not changed since."),
    "stale": ("warning", "Stale: a run today may give other results."),
    "missing": ("warning", "Not known: nobody noted what this page was made from."),
}


_statuses = cache(statuses)  # a profile's models and data are read once, not for each page


def badge(state: Status) -> str:
    """The admonition for a status, in MyST Markdown."""
    kind, says = _SAYS[state.state]
    reasons = f" Since then: {', '.join(state.reasons)}." if state.reasons else ""
    unchecked = f" Not checked here: {', '.join(state.unchecked)}." if state.unchecked else ""
    return f":::{{{kind}}}\n{says}{reasons}{unchecked}\n:::\n"


def _add_badge(app: Any, page: str, source: list[str]) -> None:
    """Put the badge below the title of `results/<profile>/notebooks/<name>`."""
    path = PurePosixPath(page)
    if path.parent.name != "notebooks":
        return
    try:
        state = _statuses(Path(app.srcdir), path.parts[1])[path.name]
    except (InputError, KeyError):
        state = Status("missing")
    notebook: dict[str, Any] = json.loads(source[0])
    cell = {"cell_type": "markdown", "id": "badge", "metadata": {}, "source": badge(state)}
    notebook["cells"].insert(1, cell)
    source[0] = json.dumps(notebook)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx with its application."""
    app.connect("source-read", _add_badge)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
