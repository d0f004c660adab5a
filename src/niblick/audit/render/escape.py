"""Makes foreign text harmless where it is shown: terminals, Markdown, HTML and SARIF messages.

A path, an error message or a claim may hold escape sequences, direction overrides, links or markup;
after these functions it is only characters.
"""

from __future__ import annotations

import html
import re
import unicodedata

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-!|~&@$.:])")
_LINK = re.compile(r"([\\\[\]()])")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_LONGEST = 2_000


def plain(text: object) -> str:
    """One line without control, format, surrogate or unassigned characters; those show as `\\x1b`
    or `\\u202e`.
    """
    shown = str(text)
    if len(shown) > _LONGEST:
        shown = shown[:_LONGEST] + "…"
    shown = re.sub(r"[\r\n\t]+", " ", shown)
    return "".join(
        _visible(char) if unicodedata.category(char) in _HIDDEN else char for char in shown
    )


def _visible(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def markdown(text: object) -> str:
    """`plain`, with every character that Markdown or its dialects could read as markup escaped."""
    return _MARKDOWN.sub(r"\\\1", plain(text))


def code(text: object) -> str:
    """A Markdown code span that its content cannot end."""
    shown = plain(text) or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", shown)), default=0) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def hyper(text: object) -> str:
    """`plain`, for HTML text and quoted attributes."""
    return html.escape(plain(text), quote=True)


def sarif(text: object) -> str:
    """`plain`, with the brackets of SARIF's embedded links escaped."""
    return _LINK.sub(r"\\\1", plain(text))
