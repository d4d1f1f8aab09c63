"""Every page of the book, as a reader without network sees it, on a desktop and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; playwright's own download is in no package registry."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a browser: neither chromium nor google-chrome is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def pages(site: Path) -> list[Path]:
    """All but the redirection from the root to the introduction."""
    found = sorted(p for p in site.rglob("*.html") if "_static" not in p.relative_to(site).parts)
    return [path for path in found if path != site / "index.html"]


def open_pages(browser: Browser, site: Path, width: int, **options: object) -> Iterator[Page]:
    """Every page in turn; a request to another host or an error on the console fails."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    troubles: list[str] = []
    page.on("request", lambda r: is_local(r.url) or troubles.append(f"asks for {r.url}"))
    # what the next page interrupts is no trouble
    page.on("requestfailed", lambda r: "ABORTED" in r.failure or troubles.append(f"lacks {r.url}"))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
    for path in pages(site):
        page.goto(path.as_uri())
        yield page
        assert troubles == [], path
    context.close()


def is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("file", "data", "blob")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_load_without_complaint_and_do_not_scroll_sideways(
    browser: Browser, site: Path, width: int
) -> None:
    for page in open_pages(browser, site, width):
        assert page.evaluate(OVERFLOW) <= 0, page.url
        assert page.locator("h1").count() >= 1, page.url


def test_the_root_leads_to_the_introduction(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/book/introduction.html")
    page.close()


def test_formulas_are_rendered(browser: Browser, site: Path) -> None:
    seen = 0
    for page in open_pages(browser, site, WIDTHS["desktop"]):
        written = (
            Path(unquote(urlsplit(page.url).path)).read_text().count('class="math notranslate')
        )
        if written:
            page.wait_for_function(
                f"document.querySelectorAll('mjx-container').length === {written}"
            )
            assert page.locator("mjx-merror").count() == 0, page.url
            seen += written
    assert seen > 0


def test_pictures_are_there_and_say_what_they_show(browser: Browser, site: Path) -> None:
    pictures = []
    for page in open_pages(browser, site, WIDTHS["desktop"]):
        pictures += page.evaluate(
            "[...document.images].map(i => [document.URL, i.alt, i.complete && i.naturalWidth])"
        )
    assert pictures
    for url, text, width in pictures:
        assert width, url
        assert len(text) > 20 and not text.endswith(".png"), (url, text)


def test_recordings_can_be_played(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "book/listen.html").as_uri())
    durations = page.evaluate(
        """Promise.all([...document.querySelectorAll('audio')].map(audio => new Promise(
            (resolve, reject) => {
              audio.onloadedmetadata = () => resolve(audio.duration);
              audio.onerror = () => reject(audio.src);
              audio.preload = 'metadata'; audio.load();
            })))"""
    )
    page.close()
    assert len(durations) >= 2 and min(durations) > 0.3


def test_links_within_the_book_lead_somewhere(browser: Browser, site: Path) -> None:
    links: set[str] = set()
    names: dict[str, set[str]] = {}
    for page in open_pages(browser, site, WIDTHS["desktop"]):
        links |= set(page.evaluate("[...document.links].map(a => a.href)"))
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        names[urldefrag(page.url).url] = set(ids)
    local = {link for link in links if is_local(link)}
    assert any("/_downloads/" in link for link in local)  # records
    assert any(link.endswith(".ipynb") for link in local)  # notebooks
    for link in local:
        url, fragment = urldefrag(link)
        assert Path(unquote(urlsplit(url).path)).is_file(), link
        assert not fragment or url not in names or unquote(fragment) in names[url], link


def test_a_table_is_sorted_and_filtered_and_whole_without_scripts(
    browser: Browser, site: Path
) -> None:
    address = (site / "book/results.html").as_uri()
    page = browser.new_page(java_script_enabled=False)
    page.goto(address)
    rows = page.locator(".sortable tbody tr")
    whole = rows.count()
    assert whole > 20 and all(rows.nth(i).is_visible() for i in range(whole))
    page.close()
    page = browser.new_page()
    page.goto(address)
    rows = page.locator(".sortable tbody tr")
    column = "[...document.querySelectorAll('.sortable tbody tr')].map(r => +r.cells[4].innerText)"
    for direction in (1, -1):
        page.get_by_role("button", name="WER %").click()
        rates = page.evaluate(column)
        assert rates == sorted(rates, key=lambda rate: direction * rate) and len(rates) == whole
    page.get_by_role("searchbox", name="Words that a row must have").fill("quick W8A8 mini-clean")
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < whole
    assert all("quick" in text and "w8a8" in text and "mini-clean" in text for text in shown)
    page.close()


def test_the_text_is_readable_without_scripts_and_in_the_dark(browser: Browser, site: Path) -> None:
    for options in ({"java_script_enabled": False}, {"color_scheme": "dark"}):
        context = browser.new_context(**options)
        page = context.new_page()
        page.goto((site / "book/claims.html").as_uri())
        assert page.locator("table >> text=reproduced").first.is_visible()
        assert page.locator("summary, .sd-tab-set").count() == 0  # nothing waits to be opened
        context.close()


def test_the_dark_page_is_dark(browser: Browser, site: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((site / "book/claims.html").as_uri())
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    context.close()
    assert max(int(part) for part in color[4:-1].split(",")) < 64


def test_the_search_finds_a_word(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto(f"{(site / 'search.html').as_uri()}?q=requantization")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_text_contents()
    page.close()
    assert "Integer arithmetic" in found
