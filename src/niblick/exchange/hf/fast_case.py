"""Case operators (`niblick.text.case`) as steps of Hugging Face's `tokenizers` library.

It replaces patterns by constants, so each letter has a step of its own. Marks are noncharacters
while a text is worked on; those that it holds itself are escaped meanwhile. Encoding is exact for
every text. Decoding drops literal U+FDD0 and U+FDD1.
"""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

from niblick.text.case import CAPS, TITLE

NAMES = {TITLE: "T", CAPS: "U"}
"""What the pieces of marks are called: letters that are in no lowered text and in no byte's name.
"""
_ESCAPE = "\ufdd2"
_ESCAPED = {_ESCAPE: _ESCAPE + "0", TITLE: _ESCAPE + "1", CAPS: _ESCAPE + "2"}
_WORD = "[A-Z]{2,}(?![A-Za-z])"
_BEFORE_CAPS = f"(?= {_WORD})|(?<![ A-Za-z])(?={_WORD})"
_BEFORE_CAPITAL = "(?= [A-Z])|(?<! )(?=[A-Z])"


def _each_in_capitals(letter: str) -> str:
    """The pattern of every `letter` in a word after `CAPS`: from the mark on, or from where the
    last one was found.
    """
    return rf"(?:{CAPS} ?|(?!\A)\G)[A-Za-z]*?\K{letter}"


def lower_case(before: Any) -> Any:
    """A normalizer that goes on from `before` to a text of small letters and marks."""
    from tokenizers import Regex, normalizers

    replace = normalizers.Replace
    steps = [before, *(replace(*pair) for pair in _ESCAPED.items())]
    steps.append(replace(Regex(_BEFORE_CAPS), CAPS))
    for letter in ascii_lowercase:
        steps.append(replace(Regex(_each_in_capitals(letter.upper())), letter))
    steps.append(replace(Regex(_BEFORE_CAPITAL), TITLE))
    steps += [replace(letter.upper(), letter) for letter in ascii_lowercase]
    steps += [replace(*pair) for pair in NAMES.items()]
    steps += [replace(found, literal) for literal, found in reversed(_ESCAPED.items())]
    return normalizers.Sequence(steps)


def raise_case(joining: list[Any]) -> list[Any]:
    """Steps of a decoder around those that join tokens, the last of which strips the first
    space.
    """
    from tokenizers import Regex, decoders

    replace = decoders.Replace
    *join, strip = joining
    steps = [replace(name, mark) for mark, name in NAMES.items()] + join
    steps += [replace(f"{mark} ", f" {mark}") for mark in NAMES]
    steps.append(strip)
    for letter in ascii_lowercase:
        steps.append(replace(f"{TITLE}{letter}", letter.upper()))
    for letter in ascii_lowercase:
        steps.append(replace(Regex(_each_in_capitals(letter)), letter.upper()))
    return [*steps, replace(Regex(f"[{TITLE}{CAPS}]"), "")]
