"""Behaviour tests: the script's own model and evaluation, run small on a CPU in the sandbox, and
what they show.

These findings rest on what was seen, and say so (`source="dynamic"`). A breach is given only where
a run of the script surely comes to the function that showed it; elsewhere the same sight is a
remark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from niblick.audit.orders import job_for
from niblick.audit.render.escape import plain
from niblick.audit.sandbox import Limits, detect, run
from niblick.audit.types import Finding, Severity, Span, Submission

_LIMITS = Limits(cpu_seconds=120, wall_seconds=150, memory_bytes=6_000_000_000)
_LEAK, _NOISE = 0.02, 1e-3  # of the logits' standard deviation
_ENOUGH = 0.5  # part of the stream that must have been scored for the order to count
_C1 = (
    "Conditions C1: the distribution for a token depends only on the artifact and on tokens"
    " before it"
)
_C2 = "Conditions C2: a full distribution exists before the token is looked at"
_C3 = "Conditions C3: a token is scored before any update that has seen it"


def behaviour(submission: Submission, *, trust: bool = False) -> tuple[Finding, ...]:
    """Findings from running the model and the evaluation; empty where nothing could be run."""
    if submission.script is None or submission.source is None or not (detect().contained or trust):
        return ()
    outcome = run(job_for(submission, "behaviour"), trust=trust, limits=_LIMITS)
    if outcome.result is None:
        return (_unfinished(submission, outcome.reason or "it ended early"),)
    return tuple(findings_from(outcome.result, submission))


def findings_from(result: dict[str, Any], submission: Submission) -> Iterator[Finding]:
    """The findings that a worker's report gives rise to; it describes foreign code and may hold
    anything.
    """
    source = submission.source
    unpacked = bool(source and source.layers)
    file = submission.script.name if submission.script else "."
    attempts = result.get("attempts")
    for attempt in attempts[:10] if isinstance(attempts, list) else ():
        yield _finding(
            "dynamic-import-effects",
            Severity.NOTE,
            f"while being imported it {_after_place(attempt)}",
            "Limits and evidence: nothing but the artifact at evaluation",
            "do this in main, before the clock starts",
            _span(file, attempt, unpacked),
        )
    probe = result.get("probe")
    if isinstance(probe, dict) and "unusable" not in probe:
        yield from _probe_findings(probe, file, unpacked)
    driven = result.get("driven")
    for seen in driven if isinstance(driven, list) else ():
        if isinstance(seen, dict):
            yield from _order_findings(seen, file, unpacked)


def _after_place(attempt: object) -> str:
    return str(attempt).partition(": ")[2][:200] or "tries more than computing"


def _span(file: str, attempt: object, unpacked: bool) -> Span | None:
    line = str(attempt).partition(": ")[0].rpartition(":")[2]
    return (
        Span(file=file, start=int(line), end=int(line), unpacked=unpacked)
        if line.isdigit()
        else None
    )


def _finding(
    rule: str,
    severity: Severity,
    evidence: str,
    pointer: str,
    cure: str,
    span: Span | None,
    verdict: str | None = None,
) -> Finding:
    return Finding(
        rule=rule,
        severity=severity,
        verdict=verdict,
        span=span,
        evidence=evidence,
        pointer=pointer,
        cure=cure,
        source="dynamic",
    )


def _unfinished(submission: Submission, why: str) -> Finding:
    file = submission.script.name if submission.script else "."
    return _finding(
        "dynamic-unfinished",
        Severity.INFO,
        f"the behaviour tests gave no result ({why}); the verdict rests on reading",
        "Behaviour",
        "none is needed",
        Span(file=file, start=1, end=1),
    )


def _number(values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _probe_findings(probe: dict[str, Any], file: str, unpacked: bool) -> Iterator[Finding]:
    """Causality, blindness to targets, determinism and document boundaries of the model."""
    line = int(_number(probe, "line")) or 1
    span = Span(file=file, start=line, end=line, unpacked=unpacked)
    scale = max(_number(probe, "scale"), 1e-6)
    name = plain(probe.get("model"))
    where = f"{name} with random weights, {int(_number(probe, 'length'))} tokens"
    repeat, future, targets = (
        _number(probe, key) / scale for key in ("repeat", "future", "targets")
    )
    if repeat > _NOISE:
        said = f"two runs on the same tokens differ by {repeat:.3f} of the logits' spread ({where})"
        yield _finding(
            "dynamic-determinism", Severity.NOTE, said, _C1, "make evaluation deterministic", span
        )
    if future > _LEAK and future > 4 * repeat:
        said = (
            f"changing later tokens moves earlier logits by {future:.3f} of their spread ({where})"
        )
        yield _finding(
            "dynamic-causality",
            Severity.BREACH,
            said,
            _C1,
            "mask what comes later",
            span,
            "flag_other",
        )
    elif targets > _LEAK and targets > 4 * repeat:
        said = (
            f"changing the targets alone moves the logits by {targets:.3f} of their spread"
            f" ({where})"
        )
        yield _finding(
            "dynamic-targets",
            Severity.BREACH,
            said,
            _C1,
            "keep targets out of the model",
            span,
            "flag_other",
        )
    elif repeat <= _NOISE:
        across = _number(probe, "across_bos") / scale
        crossing = (
            f"sees tokens before a BOS ({across:.2f})"
            if across > _NOISE
            else "sees nothing before a BOS"
        )
        said = (
            "no logit depends on later tokens or on targets, runs repeat exactly; a document"
            f" {crossing} ({where})"
        )
        yield _finding("dynamic-causality", Severity.INFO, said, _C1, "none is needed", span)


def _order_findings(seen: dict[str, Any], file: str, unpacked: bool) -> Iterator[Finding]:
    """The order of scoring and learning that one evaluation function showed."""
    if seen.get("error"):
        return
    line = int(_number(seen, "line")) or 1
    span = Span(file=file, start=line, end=max(line, int(_number(seen, "end"))), unpacked=unpacked)
    name = f"{plain(seen.get('function'))}()"
    counted, scoreable, late, learnt = (
        int(_number(seen, key)) for key in ("counted", "scoreable", "late", "learnt")
    )
    sure = seen.get("reached") == "yes"
    if counted < _ENOUGH * scoreable:
        if learnt:
            said = (
                f"{name} learnt from {learnt} of {scoreable} validation tokens and reported no"
                " score for them first"
            )
            yield _finding("dynamic-order", Severity.NOTE, said, _C3, "score before learning", span)
        return
    how = f"{counted} of {scoreable} tokens of a synthetic stream scored"
    if late > 0:
        slot = 2 * _number(seen, "late_by_delta") > late
        what = "a delta" if slot else "its weights"
        said = f"{name} updated {what} on {late} tokens before it scored them ({how})"
        breach = "flag_slot" if slot else "flag_prequant_ttt"
        severity, verdict = (Severity.BREACH, breach) if sure else (Severity.NOTE, None)
        yield _finding(
            "dynamic-order",
            severity,
            said,
            _C3,
            "score each token before learning from it",
            span,
            verdict,
        )
    elif learnt > 0:
        said = (
            f"{name} scored every token before learning from it ({how}, {learnt} learnt from later)"
        )
        verdict = "clean_ttt_score_first" if sure else None
        yield _finding("dynamic-order", Severity.INFO, said, _C3, "none is needed", span, verdict)
    else:
        said = f"{name} learnt nothing while it scored ({how})"
        yield _finding("dynamic-order", Severity.INFO, said, _C3, "none is needed", span)
    yield from _sum_findings(seen, name, span)


def _sum_findings(seen: dict[str, Any], name: str, span: Span) -> Iterator[Finding]:
    """Whether what a function reported is the mean loss of its model's own distributions."""
    own, returned = _number(seen, "own"), seen.get("returned")
    reported = [
        float(value)
        for value in returned or ()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    if not own or not reported or min(abs(value - own) for value in reported) < 0.02 * own:
        return
    said = (
        f"{name} reports {reported[0]:.4f}; the mean loss of the model's own distributions was"
        f" {own:.4f} nats"
    )
    cure = "show that what is mixed in keeps the distribution normalised"
    yield _finding("dynamic-own-loss", Severity.NOTE, said, _C2, cure, span)
