"""What is known of numbers that are not: their signs, and whether tokens were held to fewer.

Tokens held below a bound, or taken modulo one, may be other tokens than those of the stream. What
the bound is worth beside the vocabulary of the data is seldom in the script, so such scores are of
unknown content; a bound that no token reaches changes nothing.
"""

from __future__ import annotations

import ast

from niblick.audit.flow.boxes import POSITIVE, Box, is_token, known

ALTERED = "altered"
"""The mark of tokens that may have become other ones."""
FED, MOVED = "fed:", "moved"
"""How the mark of a call of a model begins; that of its output, rolled or flipped."""
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
NARROWING = (ast.Mod, ast.FloorDiv, ast.BitAnd, ast.RShift)
_LARGEST_TOKEN = 65_535


def narrows(bound: object) -> bool:
    """Whether numbers that are held below a bound may be fewer than any token is."""
    number = known(bound)
    one = number.val is not None and number.val.size == 1
    return not (one and number.val.item() >= _LARGEST_TOKEN)  # type: ignore[union-attr]


def bounds(part: Box) -> bool:
    """Whether a side of a comparison is tokens, or a number that may lie among them."""
    one = part.val is not None and part.val.size == 1
    return is_token(part) or (narrows(part) and not (one and part.val.item() <= 0))  # type: ignore[union-attr]


def positive(box: Box) -> bool:
    """Whether a value is known not to be negative: a number, or what is squared or the like."""
    if POSITIVE in box.marks:
        return True
    return box.val is not None and box.pos is None and not box.scores and bool((box.val >= 0).all())


def even(box: Box) -> bool:
    """Whether a value is an even number."""
    return box.val is not None and box.val.size == 1 and bool(box.val.item() % 2 == 0)


def moved(box: Box) -> Box:
    """`box`, marked where a model made it of tokens: its places are no longer theirs."""
    if any(mark.startswith(FED) for mark in box.marks):
        box.marks |= {MOVED}
    return box
