"""The book builds without a warning, and nothing in its files points to another host."""

import re
from html.parser import HTMLParser
from pathlib import Path

import yaml
from book_site import ROOT, build, copy_sources

from zqlib.book.pages import records

CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.md"))
# what the browser loads by itself, as opposed to what a reader may click on
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


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


def test_every_record_can_be_downloaded() -> None:
    table = records(ROOT)
    paths = [path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.json")]
    assert paths
    assert [path for path in paths if f"</{path}>" not in table] == []


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
