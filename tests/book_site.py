"""Builds the book once for all tests that look at it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]


def build(root: Path) -> subprocess.CompletedProcess[str]:
    """Build the book of the tree at `root` exactly as the Makefile does."""
    (recipe,) = [
        line.strip().removeprefix("$(BIN)/")
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.strip().startswith("$(BIN)/jupyter-book build")
    ]
    command = [str(Path(sys.executable).parent / "jupyter-book"), *recipe.split()[1:]]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def copy_sources(target: Path) -> None:
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, target / name)
    shutil.copytree(ROOT / "book", target / "book")
    shutil.copytree(ROOT / "results", target / "results")
    for name in ("zqlib", "workflow", "notebooks"):  # quoted, not changed
        (target / name).symlink_to(ROOT / name)


def write_notebook(path: Path, profile: str) -> None:
    """Write an executed notebook: text with math, a stream, a table, a picture."""
    figure = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptV"
        "AAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    )
    outputs = [
        new_output("stream", name="stderr", text="3/3 [00:01<00:00]\n"),
        new_output("display_data", data={"text/html": "<table><tr><td>1</td></tr></table>"}),
        new_output("display_data", data={"image/png": figure}),
    ]
    cells = [
        new_markdown_cell(f"# Made for the test ({profile})\n\nThe loss $\\mathcal{{L}}$."),
        new_code_cell("1 + 1", execution_count=1, outputs=outputs),
    ]
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), path)


def build_site(root: Path) -> Path:
    """The book built with the results of this checkout and a notebook made for the test."""
    copy_sources(root)
    write_notebook(root / "results/full/notebooks/made.ipynb", "full")
    killed = root / "results/full/notebooks/.wer.ipynb.x.tmp/wer.ipynb"  # see zqlib/files.py
    killed.parent.mkdir()
    killed.write_text('{"cells": [')
    foreign = root / ".cache/lib/package.rst"  # what tools leave in a checkout is no page
    foreign.parent.mkdir(parents=True)
    foreign.write_text(":py:func:`nowhere.to.be.found`\n")
    run = build(root)
    assert run.returncode == 0, run.stdout + run.stderr
    return root / "_build/html"
