"""Which evaluation of the run the submission's own figure comes from, where its logs tell.

A run often prints several figures. The line of a log that states the claimed one is printed by one
place of the program; the scores that go into it there are the ones whose order and independence
matter most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from niblick.audit.conditions import in_order, log_lines
from niblick.audit.rules.case import Case

_NUMBER = re.compile(r"(?<![\w.])\d\.\d{3,}")
_STATED = re.compile(r"bpb[^\n\d]{0,40}(\d\.\d{4,})", re.IGNORECASE)
_NEXT = re.compile(r"\W{0,3}(\d\.\d{3,})")
_DEPTH = 4
_SHORTEST = 6


def claimed_scores(case: Case) -> frozenset[int]:
    """Numbers of the score events behind the claimed figure; empty where the logs do not tell."""
    return _claimed(case)[0]


def claimed_unseen(case: Case) -> bool:
    """Whether the logs tell which place prints the claimed figure, and no score comes to it."""
    return _claimed(case)[1]


def _claimed(case: Case) -> tuple[frozenset[int], bool]:
    """Scores behind the claimed figure, as far as seen, and whether the words of a place that no
    score comes to fit it better.
    """
    stated = list(claims(case))
    if not stated or not case.trace.printed:
        return frozenset(), False
    best, found, unseen = _SHORTEST, frozenset[int](), 0
    for line in log_lines(case.submission.root, case.text):
        if not any(same(number, claim) for number in _NUMBER.findall(line) for claim in stated):
            continue
        for values, end in case.trace.printed:
            words = [*(word for word, _ in values), end]
            size = sum(map(len, words))
            if not in_order(words, line):
                continue
            scores = _stated_there(values, line, stated)
            if scores and size >= best:
                found = scores if size > best else found | scores
                best = size
            elif not scores:
                unseen = max(unseen, size)
    return found, unseen > best


def _stated_there(
    values: tuple[tuple[str, frozenset[int]], ...], line: str, stated: list[str]
) -> frozenset[int]:
    """The scores in the values that a line shows where it states the claimed figure; those of all
    its values where that place is not found.
    """
    at, here = 0, frozenset[int]()
    placed = False
    for words, scores in values:
        at = line.find(words, at) + len(words)
        number = _NEXT.match(line, at)
        if number and any(same(number[1], claim) for claim in stated):
            here, placed = here | scores, True
    return here if placed else frozenset[int]().union(*(scores for _, scores in values))


def claims(case: Case) -> Iterator[str]:
    """The figures a submission states as its own, as written."""
    stated = list(_bpb_fields(case.submission.metadata or {}, _DEPTH))
    yield from stated or [
        m[1] for m in list(_STATED.finditer((case.submission.readme or "")[:4000]))[:3]
    ]


def _bpb_fields(value: object, depth: int) -> Iterator[str]:
    if not isinstance(value, dict) or depth == 0:
        return
    for name, inner in list(value.items())[:200]:
        if (
            isinstance(inner, float)
            and "bpb" in str(name).lower()
            and not re.search(r"std|baseline|sota|prior|previous|delta|pre_", str(name).lower())
        ):
            yield repr(inner)
        yield from _bpb_fields(inner, depth - 1)


def same(logged: str, claim: str) -> bool:
    """Whether a logged number is the claimed one, to the digits that both have (four at least)."""
    digits = min(len(logged), len(claim)) - 2
    return digits >= 4 and abs(float(logged) - float(claim)) < 0.51 * 10.0**-digits
