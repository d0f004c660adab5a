"""A small tensor fitted at evaluation on the very positions it then helps to score (C1, C3)."""

from __future__ import annotations

from niblick.audit.rules.case import (
    Case,
    certain,
    first_by_line,
    learnt_kinds,
    overlap,
    positions,
    violations,
)
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "slot"


@rule("slot")
def check(case: Case) -> list[Finding]:
    """One breach per place that reports scores under a tensor fitted to the same tokens."""
    out = []
    settings = violations(case.trace, "setting")
    for event in first_by_line([*violations(case.trace, "tensor"), *settings]):
        if "module" in learnt_kinds(case.trace, event) and "tensor" not in event.leaf_kinds:
            continue
        fit = next(
            u
            for u in case.trace.updates
            if u.positions & overlap(case.trace, event) and u.order < event.order
        )
        out.append(
            case.finding(
                RULE,
                Severity.BREACH if certain(case.trace, event) else Severity.WARNING,
                f"{event.where.function} scores {positions(overlap(case.trace, event))} with a"
                f" tensor that line {fit.where.line} has just fitted to the same tokens.",
                verdict="flag_slot",
                pointer="C3",
                where=event.where,
                cure=(
                    "Fit only to tokens whose score is already fixed: mask the loss to positions"
                    " scored earlier."
                ),
            )
        )
    return out
