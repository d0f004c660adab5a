"""Every relative link in README.md and docs/ leads to a file that is there, and to a heading in
it.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_PARSER = MarkdownIt("commonmark").enable("table")


def broken_links(page: Path) -> list[str]:
    """Links of a page that lead nowhere, as they are written."""
    found = [link for link in _pictures(page) if not _leads(page, link)]
    for token in _inline(page):
        for inner in token.children or ():
            link = inner.attrs.get("href", inner.attrs.get("src"))
            if isinstance(link, str) and not urlsplit(link).scheme and not _leads(page, link):
                found.append(link)
    return found


def _pictures(page: Path) -> list[str]:
    """What the pictures that are written as HTML show."""
    parts = [t.content for t in _PARSER.parse(page.read_text("utf-8")) if t.type == "html_block"]
    return re.findall(r'\b(?:src|srcset|href)="([^":]+)"', "".join(parts))


def _leads(page: Path, link: str) -> bool:
    parts = urlsplit(link)
    target = page.parent / unquote(parts.path) if parts.path else page
    if not target.exists():
        return False
    return not parts.fragment or unquote(parts.fragment) in _anchors(target)


def _anchors(page: Path) -> set[str]:
    """The headings' names as GitHub makes them: repeated ones are numbered."""
    tokens, found, seen = _PARSER.parse(page.read_text("utf-8")), set(), dict[str, int]()
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            text = "".join(c.content for c in token.children or () if c.type != "html_inline")
            name = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            count = seen.get(name, 0)
            seen[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return found


def _inline(page: Path) -> list[Token]:
    return [t for t in _PARSER.parse(page.read_text("utf-8")) if t.type == "inline"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_broken_link(page: Path) -> None:
    assert broken_links(page) == []


def test_links_are_found_and_broken_ones_told(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# The `code` & more: a/b\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n\n[a](other.md#the-code--more-ab) [b](#here) [c](https://example.org/x)"
        " [d](other.md#twice-1)\n\n| [e](gone.md) |\n|---|\n| ![f](gone.svg) |\n\n"
        "[g](other.md#gone) [h](#there)\n\n```\n[i](in-code.md)\n```\n\n"
        '<picture>\n<source srcset="dark.svg">\n<img src="other.md">\n</picture>\n'
    )
    assert broken_links(page) == ["dark.svg", "gone.md", "gone.svg", "other.md#gone", "#there"]
    assert len(PAGES) > 10
