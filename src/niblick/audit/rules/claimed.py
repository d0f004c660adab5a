"""Which evaluation of the run the submission's own figure comes from, where its logs tell.

A run often prints several figures. The line of a log that states the claimed one is printed by one
place of the program; the scores that go into it there are the ones whose order and independence
matter most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from niblick.audit.conditions import in_order
from niblick.audit.flow.objects import Template, Trace
from niblick.audit.types import Submission

_NUMBER = re.compile(r"(?<![\w.])\d\.\d{3,}")
_STATED = re.compile(r"bpb[^\n\d]{0,40}(\d\.\d{4,})", re.IGNORECASE)
_NEXT = re.compile(r"\W{0,3}(\d\.\d{3,})")
_DEPTH = 4
_SHORTEST, _MOST_RUNS = 6, 20


@dataclass(frozen=True)
class Claimed:
    """The figures that a submission states as its own, as written, the numbers of the score events
    behind them (none where the logs do not tell), whether the logs tell which place prints them and
    no score comes to it, and the lines of the logs that state one.
    """

    stated: tuple[str, ...]
    scores: frozenset[int] = frozenset()
    unseen: bool = False
    lines: frozenset[str] = frozenset()


def claimed(submission: Submission, logs: list[list[str]], trace: Trace) -> Claimed:
    """What is known of the claimed figure: of the places that print lines of the logs that state
    it, the one whose words fit these best counts, texts that it fills in before other words.
    """
    named = list(_bpb_fields(submission.metadata or {}, _DEPTH))
    stated = tuple(number for _, number in named) or tuple(_told(submission))
    if not stated or not trace.printed:
        return Claimed(stated)
    lines = list(dict.fromkeys(line for log in logs for line in log))
    plain = tuple(number for name, number in named if name == "val_bpb")
    if any(_shows(line, plain) for line in lines):
        stated = plain  # figures of other names are those of stages before the claimed one
    stating = [line for line in lines if _shows(line, stated)]
    best, found, unseen = (False, 0), frozenset[int](), (False, 0)
    for values, end in dict.fromkeys(trace.printed):
        pieces = [*(word for word, *_ in values), end]
        whole = [*(part for word, _, text in values for part in (word, text)), end]
        said = [line for line in stating or lines if in_order(pieces, line)]
        fits = any(in_order(whole, line) for line in said)
        size = fits, sum(map(len, whole if fits else pieces))
        if size[1] < _SHORTEST or not (said and (stating or _states(_means(said), stated))):
            continue
        scores = frozenset[int]().union(*(_stated_there(values, line, stated) for line in said))
        if scores and size >= best:
            found = scores if size > best else found | scores
            best = size
        elif not scores:
            unseen = max(unseen, size)
    return Claimed(stated, found, unseen > best, frozenset(stating))


def shows(line: str, claim: str) -> bool:
    """Whether a line of a log states a claimed figure."""
    return _shows(line, (claim,))


def _shows(line: str, stated: tuple[str, ...]) -> bool:
    return _states(_NUMBER.findall(line), stated)


def _states(numbers: list[str], stated: tuple[str, ...]) -> bool:
    return any(same(number, claim) for number in numbers for claim in stated)


def _means(lines: list[str]) -> list[str]:
    """The means of the numbers of lines that a place has printed, one for each of several runs."""
    rows = [[float(number) for number in _NUMBER.findall(line)] for line in lines]
    if not 1 < len(rows) <= _MOST_RUNS or len({len(row) for row in rows}) > 1:
        return []
    return [f"{sum(column) / len(rows):.6f}" for column in zip(*rows, strict=True)]


def _stated_there(values: Template, line: str, stated: tuple[str, ...]) -> frozenset[int]:
    """The scores in the values that a line shows where it states the claimed figure; those of all
    its values where that place is not found.
    """
    at, here = 0, frozenset[int]()
    placed = False
    for words, scores, _ in values:
        at = line.find(words, at) + len(words)
        number = _NEXT.match(line, at)
        if number and any(same(number[1], claim) for claim in stated):
            here, placed = here | scores, True
    return here if placed else frozenset[int]().union(*(scores for _, scores, _ in values))


def _told(submission: Submission) -> Iterator[str]:
    """The first figures of a README, for want of any in the metadata."""
    yield from (m[1] for m in islice(_STATED.finditer((submission.readme or "")[:4000]), 3))


def _bpb_fields(value: object, depth: int) -> Iterator[tuple[str, str]]:
    """Names and numbers of the figures in a submission's metadata."""
    if not isinstance(value, dict) or depth == 0:
        return
    for name, inner in list(value.items())[:200]:
        if (
            isinstance(inner, float)
            and "bpb" in str(name).lower()
            and not re.search(r"std|baseline|sota|prior|previous|delta|pre_", str(name).lower())
        ):
            yield str(name), repr(inner)
        yield from _bpb_fields(inner, depth - 1)


def same(logged: str, claim: str) -> bool:
    """Whether a logged number is the claimed one, to the digits that both have (four at least)."""
    digits = min(len(logged), len(claim)) - 2
    return digits >= 4 and abs(float(logged) - float(claim)) < 0.51 * 10.0**-digits
