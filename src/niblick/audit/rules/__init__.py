"""The rules of a static review, one a file; each turns a `Case` into findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from niblick.audit.rules import (
    artifact,
    byte_accounting,
    byte_mixture,
    byte_total,
    clock,
    figure,
    followed,
    hashed_pair,
    held_state,
    hint_gate,
    importable,
    missing_parts,
    ngram_key,
    outside,
    score_first,
    seeds,
    slot,
    stored_text,
    train_before_score,
    unreadable,
    validation_data,
)
from niblick.audit.rules.case import Case
from niblick.audit.types import Finding
from niblick.audit.unpack import unpack

RULES: tuple[Callable[[Case], list[Finding]], ...] = (
    importable.check,
    unreadable.check,
    missing_parts.check,
    followed.check,
    ngram_key.check,
    hashed_pair.check,
    hint_gate.check,
    held_state.check,
    figure.check,
    slot.check,
    train_before_score.check,
    score_first.check,
    validation_data.check,
    byte_accounting.check,
    byte_mixture.check,
    byte_total.check,
    outside.check,
    stored_text.check,
    clock.check,
    seeds.check,
    artifact.check,
)
"""Every static rule, in the order their findings are listed."""


OF_TEXT: tuple[Callable[[Case], list[Finding]], ...] = (
    unreadable.check,
    hashed_pair.check,
    byte_accounting.check,
    byte_mixture.check,
    stored_text.check,
    clock.check,
)
"""Rules that look at text, and so at each module that a script carries, too."""


def apply(case: Case) -> tuple[Finding, ...]:
    """The findings of every rule on one case."""
    own = [finding for rule in RULES for finding in rule(case)]
    return (
        *own,
        *(finding for part in _carried(case) for rule in OF_TEXT for finding in rule(part)),
    )


def _carried(case: Case) -> Iterator[Case]:
    """The case once more for every module that the script carries in itself."""
    for name, text in case.carried.items():
        if name.endswith(".py") and text.strip() and case.submission.source is not None:
            source = unpack(text.encode("utf-8", "replace"), name).source
            yield replace(case, submission=replace(case.submission, source=source), carried={})
