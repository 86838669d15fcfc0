"""The site of the docs: built with `--strict`, and the same as the repository shows, links and blocks."""

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = {page: page.relative_to(ROOT / "docs").with_suffix(".html") for page in sorted((ROOT / "docs").rglob("*.md"))}
PAGES[ROOT / "README.md"] = Path("index.html")
EXTENSIONS = ROOT / "docs" / "extending.md"
# What a reader would miss if mkdocs read a page otherwise than GitHub.
BLOCKS = {"h1", "h2", "h3", "ul", "ol", "li", "table", "tr", "pre", "img"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Article(HTMLParser):
    """The tags in a page's <article>, and what the whole page refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.is_inside = False
        self.tags: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.is_inside |= tag == "article"
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") == "stylesheet":
            self.loaded.append(given["href"])
        if self.is_inside:
            self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.is_inside &= tag != "article"


def read(path: Path) -> Article:
    return Article(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_blocks_that_it_has_on_github(page: Path, site: Path) -> None:
    github = MarkdownIt("commonmark").enable("table").render(page.read_text(encoding="utf-8"))
    ours, theirs = read(site / PAGES[page]).tags, Article(f"<article>{github}</article>").tags
    assert {tag: ours[tag] for tag in BLOCKS} == {tag: theirs[tag] for tag in BLOCKS}


def test_links_lead_to_what_is_there_on_the_site(site: Path) -> None:
    read_pages = {page: read(page) for page in site.rglob("*.html") if page.name != "404.html"}
    local = [
        (page, *unquote(link).partition("#")[::2])
        for page, article in read_pages.items()
        for link in article.links + article.loaded
        if not re.match(r"\w+:", link)
    ]
    assert len(local) > 500
    for page, path, anchor in local:
        target = (page.parent / path).resolve() if path else page
        target = target / "index.html" if target.is_dir() else target
        assert target.is_file(), f"{page.relative_to(site)}: {path}"
        if anchor and not anchor.startswith("__"):
            assert anchor in read_pages[target].ids, f"{page.relative_to(site)}: {path}#{anchor}"


def test_links_lead_to_what_is_there_in_the_repository() -> None:
    links = [
        (page, link)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
        for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 30
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_no_page_needs_the_network(site: Path) -> None:
    loaded = [name for page in site.rglob("*.html") for name in read(page).loaded]
    assert loaded
    assert not [name for name in loaded if re.match(r"(\w+:)?//", name)]


def test_each_extension_is_shown_in_under_40_lines() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", EXTENSIONS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    assert max(len(block.splitlines()) for block in blocks) < 40
