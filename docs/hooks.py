"""Of mkdocs: the files outside of docs/ that the site shows too, with links that are right in both places.

A page is written once and read in the repository and on the site. The README is the site's first page; a link that
leads out of docs/ in the repository leads to that file's page on the site. `*` in the navigation stands for all pages
that match, in the order of their names. A page of the study leads to its plots where docs/plots.py has made them.
"""

import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# The file in the repository -> its page on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "LICENSE": "license.md",
}
INSIDE = {page: path for path, page in OUTSIDE.items()}
# Code, which stays as it is, or the target of a link within the repository.
_LINK = re.compile(r"^```.*?^```|`[^`\n]*`|\]\((?!\w+:|#)(?P<path>[^)#\s]+)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of OUTSIDE, and put pages for the patterns of the navigation."""
    for path, page in OUTSIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        content = text if path.endswith(".md") else f"# {path.capitalize()}\n\n```\n{text}```\n"
        files.append(File.generated(config, page, content=content))
    config.nav = _expand(config.nav, sorted(file.src_uri for file in files.documentation_pages()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn the links of a page, which are the repository's, into the site's."""
    here = INSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        if found["path"] is None:
            return found[0]
        path = os.path.normpath(os.path.join(os.path.dirname(here), found["path"]))
        target = OUTSIDE.get(path, os.path.relpath(path, "docs"))
        return "](" + os.path.relpath(target, os.path.dirname(page.file.src_uri))

    name = Path(page.file.src_uri).stem
    has_plots = here.startswith("docs/reproduce/") and (ROOT / "docs" / "reproduce" / "html" / f"{name}.html").exists()
    plots = f"\n[The same with plots](html/{name}.html)\n" if has_plots else ""
    return _LINK.sub(link, markdown) + plots


def _expand(nav: Any, pages: list[str]) -> Any:
    if isinstance(nav, dict):
        return {title: _expand(entry, pages) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    expanded = []
    for entry in nav:
        is_pattern = isinstance(entry, str) and "*" in entry
        expanded += [page for page in pages if fnmatch(page, entry)] if is_pattern else [_expand(entry, pages)]
    return expanded
