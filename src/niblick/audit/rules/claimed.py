"""Which evaluation of the run the submission's own figure comes from, where its logs tell.

A run often prints several figures. The line of a log that states the claimed one is printed by one
place of the program; the scores that go into it there are the ones whose order and independence
matter most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from niblick.audit.conditions import in_order
from niblick.audit.rules.case import Case

_NUMBER = re.compile(r"(?<![\w.])\d\.\d{3,}")
_DIGITS = re.compile(r"\d+")
_STATED = re.compile(r"bpb[^\n\d]{0,40}(\d\.\d{4,})", re.IGNORECASE)
_NEXT = re.compile(r"\W{0,3}(\d\.\d{3,})")
_DEPTH = 4
_SHORTEST, _MOST_RUNS = 6, 20


def claimed_scores(case: Case) -> frozenset[int]:
    """Numbers of the score events behind the claimed figure; empty where the logs do not tell."""
    return _claimed(case)[0]


def printed_elsewhere(case: Case, function: str) -> bool:
    """Whether logs state the claimed figure, in lines none of which a function of this name prints
    as far as its words tell.
    """
    stated = list(claims(case))
    lines = {line for log in case.logs for line in log if _states(_NUMBER.findall(line), stated)}
    plain = [_DIGITS.sub("0", line) for line in lines]
    own = [printed.pieces for printed in case.scan.printed if printed.function == function]
    return bool(plain and own) and not any(in_order(p, line) for p in own for line in plain)


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
    lines = list(dict.fromkeys(line for log in case.logs for line in log))
    stating = [line for line in lines if _states(_NUMBER.findall(line), stated)]
    best, found, unseen = _SHORTEST, frozenset[int](), 0
    for values, end in dict.fromkeys(case.trace.printed):
        pieces = [*(word for word, _ in values), end]
        size = sum(map(len, pieces))
        said = [line for line in stating or lines if in_order(pieces, line)]
        if not said or not (stating or _states(_means(said), stated)):
            continue
        scores = frozenset[int]().union(*(_stated_there(values, line, stated) for line in said))
        if scores and size >= best:
            found = scores if size > best else found | scores
            best = size
        elif not scores:
            unseen = max(unseen, size)
    return found, unseen > best


def _states(numbers: list[str], stated: list[str]) -> bool:
    return any(same(number, claim) for number in numbers for claim in stated)


def _means(lines: list[str]) -> list[str]:
    """The means of the numbers of lines that a place has printed, one for each of several runs."""
    rows = [[float(number) for number in _NUMBER.findall(line)] for line in lines]
    if not 1 < len(rows) <= _MOST_RUNS or len({len(row) for row in rows}) > 1:
        return []
    return [f"{sum(column) / len(rows):.6f}" for column in zip(*rows, strict=True)]


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
