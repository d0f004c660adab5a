"""The page on adding a rule does what it says."""

from __future__ import annotations

import tomllib
from pathlib import Path

from markdown_it import MarkdownIt

from niblick.audit.rules import RULES
from niblick.audit.rules.registry import load_rules

PAGE = Path(__file__).parents[2] / "docs" / "audit-rules.md"


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language, in order."""
    tokens = MarkdownIt().parse(PAGE.read_text("utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def test_the_rule_of_the_page_registers_and_tells_breach_from_twin() -> None:
    namespace: dict[str, object] = {}
    try:
        for block in blocks("python"):
            exec(compile(block, str(PAGE), "exec"), namespace)  # noqa: S102
        assert "own-sleep" in RULES
    finally:
        RULES._entries.pop("own-sleep", None)


def test_the_entry_point_group_of_the_page_is_the_one_that_is_loaded() -> None:
    declared = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    source = Path(load_rules.__wrapped__.__code__.co_filename).read_text("utf-8")
    assert [f'group="{group}"' in source for group in declared] == [True]
