"""Makes f-strings of Python 3.12 readable to the parser of Python 3.11.

From 3.12 a replacement field may reuse the quotes of the string around it. `for_old_parser` gives
each nesting level its own quotes and keeps every line number; text that holds no such string comes
back unchanged.
"""

from __future__ import annotations

import re

_LEVEL_QUOTES = ('"""', "'", '"')
_STRING = re.compile(r"([fFrRbBuU]{0,2})('''|\"\"\"|'|\")")


def for_old_parser(text: str) -> str:
    """`text` with the quotes of nested f-strings changed where Python 3.11 needs it."""
    return _Rewriter(text).code(0, "", 0)[0]


class _Rewriter:
    """A scanner over `text`; every method takes a position and returns (rewritten, position
    after).
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def code(self, at: int, closing: str, level: int) -> tuple[str, int]:
        """Program text up to an unnested character of `closing` (or the end)."""
        out: list[str] = []
        depth = 0
        text = self.text
        while at < len(text):
            char = text[at]
            if not depth and char in closing and not (char == "!" and text[at + 1 : at + 2] == "="):
                break
            if char == "#":
                end = text.find("\n", at)
                at, piece = (len(text), text[at:]) if end < 0 else (end, text[at:end])
                out.append("" if level else piece)
                continue
            match = _STRING.match(text, at)
            if match and (
                at == 0 or not (text[at - 1].isalnum() or text[at - 1] == "_") or not match[1]
            ):
                piece, at = self.string(at, match, level)
                out.append(piece)
                continue
            depth += (char in "([{") - (char in ")]}")
            out.append(char)
            at += 1
        return "".join(out), at

    def string(self, at: int, match: re.Match[str], level: int) -> tuple[str, int]:
        """One string literal that opens at `at`."""
        prefix, quote = match[1], match[2]
        at = match.end()
        formatted = "f" in prefix.lower()
        out: list[str] = []
        nested = False
        text = self.text
        while at < len(text) and not text.startswith(quote, at):
            char = text[at]
            if char == "\\":
                out.append(text[at : at + 2] if not level else "")
                at += 2
            elif formatted and text.startswith(("{{", "}}"), at):
                out.append(text[at : at + 2])
                at += 2
            elif formatted and char == "{":
                field, at = self.field(at, level)
                nested = nested or any(mark in field for mark in "'\"")
                out.append(field)
            else:
                out.append(char)
                at += 1
        body = "".join(out)
        if not level and not nested:
            return prefix + quote + body + quote, at + len(quote)
        mark = _LEVEL_QUOTES[min(level, 2)]
        if level:
            body = body if formatted else body.replace("'", "").replace('"', "")
        elif body.endswith('"'):
            body = body[:-1] + '\\"'
        return prefix + mark + body + mark, at + len(quote)

    def field(self, at: int, level: int) -> tuple[str, int]:
        """One replacement field, from its `{` to its `}`, format specification included."""
        inner, at = self.code(at + 1, ":!}", level + 1)
        out = ["{", inner]
        while at < len(self.text) and self.text[at] != "}":
            if self.text[at] == "{":
                piece, at = self.field(at, level)
                out.append(piece)
            else:
                out.append(self.text[at])
                at += 1
        return "".join(out) + "}", at + 1
