"""The book builds without a warning, asks no other host for anything, and its math is rendered."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.md"))
# what the browser loads by itself, as opposed to what a reader may click on
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


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
    for name in ("book", "notebooks", "workflow"):
        shutil.copytree(ROOT / name, target / name)


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book built with the executed notebooks of this checkout and one made for the test."""
    root = tmp_path_factory.mktemp("book")
    copy_sources(root)
    shutil.copytree(ROOT / "results", root / "results")
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


class LoadedAddresses(HTMLParser):
    """Collects the addresses that a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address that this tag loads, if it does."""
        values = dict(attrs)
        if values.get("rel") not in {"canonical", "next", "prev", "search", "index"}:
            self.addresses.append(values.get(LOADED.get(tag, "")) or "")


def is_foreign(address: str) -> bool:
    return address.startswith(("http:", "https:", "//"))


def test_every_chapter_and_notebook_has_its_page(site: Path) -> None:
    for chapter in CHAPTERS:
        assert (site / "book" / f"{chapter}.html").is_file()
    for notebook in ROOT.glob("results/*/notebooks/*.ipynb"):
        assert (site / notebook.relative_to(ROOT).with_suffix(".html")).is_file()
    assert (site / "results/full/notebooks/made.html").is_file()
    assert (site / "index.html").is_file()


def test_every_chapter_is_in_the_table_of_contents() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter.get("file") for part in toc["parts"] for chapter in part["chapters"]]
    assert {f"book/{name}" for name in CHAPTERS} <= {toc["root"], *chapters}


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    foreign = set()
    for page in site.rglob("*.html"):
        parser = LoadedAddresses()
        parser.feed(page.read_text())
        foreign |= {address for address in parser.addresses if is_foreign(address)}
    for style in (site / "_static").rglob("*.css"):
        text = style.read_text(errors="replace")
        foreign |= set(re.findall(r"""url\(["']?(?:https?:)?//[^)]*""", text))
    assert foreign == set()


def test_a_broken_reference_fails_the_build(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    with (tmp_path / "book/method.md").open("a") as chapter:
        chapter.write("\nSee {doc}`no-such-chapter`.\n")
    assert build(tmp_path).returncode != 0


def test_every_page_of_results_has_its_badge(site: Path) -> None:
    says = ("Fresh: ", "Stale: ", "Not known: ")
    pages = [path.with_suffix(".html") for path in ROOT.glob("results/*/notebooks/*.ipynb")]
    for page in pages:
        assert any(text in (site / page.relative_to(ROOT)).read_text() for text in says)


@pytest.mark.parametrize("page", ["book/method", "book/arithmetic", "results/full/notebooks/made"])
def test_math_is_rendered_in_a_browser_without_network(site: Path, page: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a headless browser: neither chromium nor google-chrome is installed")
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--dump-dom"),
    ]
    address = (site / f"{page}.html").as_uri()
    run = subprocess.run(
        [browser, *options, address], capture_output=True, text=True, timeout=120, check=True
    )
    written = (site / f"{page}.html").read_text().count('class="math notranslate')
    assert written > 0
    assert run.stdout.count("<mjx-container") == written
    assert "<mjx-merror" not in run.stdout
