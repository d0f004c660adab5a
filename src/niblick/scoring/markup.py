"""Text from outside, made harmless for where it is shown: Markdown, HTML, a terminal."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(
    r"([\\`*\[\]<>#|~&]|(?<![^\W_])_|_(?![^\W_]))"
)  # an underscore inside a word is harmless


def plain(text: object) -> str:
    """Without control characters, on one line: safe for a terminal."""
    return _CONTROL.sub("�", str(text)).replace("\n", " ").replace("\t", " ")


def markdown(text: object) -> str:
    """One line that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", plain(text))


def escape(text: object) -> str:
    """Safe inside HTML text and quoted attributes."""
    return html.escape(plain(text), quote=True)
