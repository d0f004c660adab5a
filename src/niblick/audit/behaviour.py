"""Behaviour tests: the script's own model and evaluation, run small on a CPU in the sandbox, and
what they show.

These findings rest on what was seen, and say so (`source="dynamic"`). A breach is given only where
a run of the script surely comes to the function that showed it; elsewhere the same sight is a
remark. A script can falsify what is seen of it, so none of these findings clears anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from niblick.audit.render.escape import plain
from niblick.audit.sandbox import Bundle, Limits, run
from niblick.audit.smoke import TAMPERED, Program, dynamic_finding
from niblick.audit.types import Finding, Severity, Span

_LIMITS = Limits(cpu_seconds=120, memory_bytes=6_000_000_000)
_LEAK, _NOISE = 0.02, 1e-3  # of the logits' standard deviation
_ENOUGH = 0.5  # part of the stream that must have been scored for the order to count
_EFFECTS = "Limits and evidence: nothing but the artifact at evaluation"
_C1 = "Conditions C1: a distribution depends only on the artifact and on tokens before its own"
_C2 = "Conditions C2: a full distribution exists before the token is looked at"
_C3 = "Conditions C3: a token is scored before any update that has seen it"


def behaviour(program: Program, bundle: Bundle, *, trust: bool = False) -> tuple[Finding, ...]:
    """Findings from running the model and the evaluation; empty where nothing could be run."""
    outcome = run(program.job("behaviour", bundle), trust=trust, limits=_LIMITS)
    if outcome.tampered:
        said = ("dynamic-tampering", Severity.BREACH, TAMPERED, "flag_other")
        return (dynamic_finding(program, *said),)
    if outcome.result is None or outcome.reason is not None:
        why = outcome.reason or "it ended early"
        text = f"the behaviour tests gave no result ({why}); the verdict rests on reading"
        return (dynamic_finding(program, "dynamic-unfinished", Severity.INFO, text, None),)
    return tuple(findings_from(outcome.result, program))


def findings_from(result: dict[str, Any], program: Program) -> Iterator[Finding]:
    """The findings that a worker's report gives rise to; it describes foreign code and may hold
    anything.
    """
    attempts, driven, probe = (result.get(name) for name in ("attempts", "driven", "probe"))
    for attempt in attempts[:10] if isinstance(attempts, list) else ():
        place, _, what = str(attempt)[:400].partition(": ")
        line = place.rpartition(":")[2]
        sight = _Sight(program, {"line": int(line) if line.isdecimal() else 1})
        said = f"while being imported it {what[:200] or 'tries more than computing'}"
        cure = "do this in main, before the clock starts"
        yield sight.finding("import-effects", Severity.NOTE, said, _EFFECTS, cure)
    if isinstance(probe, dict) and "unusable" not in probe:
        yield from _probe_findings(_Sight(program, probe))
    for seen in driven[:20] if isinstance(driven, list) else ():
        if isinstance(seen, dict) and not seen.get("error"):
            yield from _order_findings(_Sight(program, seen))


@dataclass(frozen=True)
class _Sight:
    """One part of a worker's report, taken for numbers and names only."""

    program: Program
    seen: dict[str, Any]

    def number(self, name: str) -> float:
        value = self.seen.get(name)
        whole = isinstance(value, int | float) and abs(value) < 1e15  # neither infinite nor NaN
        return float(value) if whole and value is not None else 0.0

    def finding(
        self,
        rule: str,
        severity: Severity,
        said: str,
        pointer: str,
        cure: str = "none is needed",
        verdict: str | None = None,
    ) -> Finding:
        line = max(int(self.number("line")), 1)
        end = max(line, int(self.number("end")))
        span = Span(file=self.program.script, start=line, end=end, unpacked=self.program.packed)
        return Finding(
            rule=f"dynamic-{rule}",
            severity=severity,
            verdict=verdict,
            span=span,
            evidence=said,
            pointer=pointer,
            cure=cure,
            source="dynamic",
        )


def _probe_findings(sight: _Sight) -> Iterator[Finding]:
    """Causality, blindness to targets, determinism and document boundaries of the model."""
    scale = max(sight.number("scale"), 1e-6)
    name = plain(sight.seen.get("model"))
    where = f"{name} with random weights, {int(sight.number('length'))} tokens"
    repeat, future, targets, across = (
        sight.number(key) / scale for key in ("repeat", "future", "targets", "across_bos")
    )
    if repeat > _NOISE:
        said = f"two runs on the same tokens differ by {repeat:.3f} of the logits' spread ({where})"
        cure = "make evaluation deterministic"
        yield sight.finding("determinism", Severity.NOTE, said, _C1, cure)
    if future > _LEAK and future > 4 * repeat:
        said = f"changing later tokens moves earlier logits by {future:.3f} of their spread"
        cure = "mask what comes later"
        said = f"{said} ({where})"
        yield sight.finding("causality", Severity.BREACH, said, _C1, cure, "flag_other")
    elif targets > _LEAK and targets > 4 * repeat:
        said = f"changing the targets alone moves the logits by {targets:.3f} of their spread"
        cure = "keep targets out of the model"
        said = f"{said} ({where})"
        yield sight.finding("targets", Severity.BREACH, said, _C1, cure, "flag_other")
    elif repeat <= _NOISE:
        sees = f"tokens before a BOS ({across:.2f})" if across > _NOISE else "nothing before a BOS"
        said = (
            "no logit depends on later tokens or on targets, runs repeat exactly; a document sees"
        )
        yield sight.finding("causality", Severity.INFO, f"{said} {sees} ({where})", _C1)


def _order_findings(sight: _Sight) -> Iterator[Finding]:
    """The order of scoring and learning that one evaluation function showed."""
    name = f"{plain(sight.seen.get('function'))}()"
    counted, scoreable, late, learnt = (
        int(sight.number(key)) for key in ("counted", "scoreable", "late", "learnt")
    )
    sure = sight.seen.get("reached") == "yes"
    if counted < _ENOUGH * scoreable:
        if learnt:
            said = f"{name} learnt from {learnt} of {scoreable} validation tokens and reported no"
            said += " score for them first"
            yield sight.finding("order", Severity.NOTE, said, _C3, "score before learning")
        return
    how = f"{counted} of {scoreable} tokens of a synthetic stream scored"
    if late > 0:
        slot = 2 * sight.number("late_by_delta") > late
        what = "a delta" if slot else "its weights"
        said = f"{name} updated {what} on {late} tokens before it scored them ({how})"
        breach = "flag_slot" if slot else "flag_prequant_ttt"
        severity, verdict = (Severity.BREACH, breach) if sure else (Severity.NOTE, None)
        cure = "score each token before learning from it"
        yield sight.finding("order", severity, said, _C3, cure, verdict)
    elif learnt > 0:
        said = f"{name} scored every token before learning from it ({how}, {learnt} learnt later)"
        yield sight.finding("order", Severity.INFO, said, _C3)
    else:
        said = f"{name} learnt nothing while it scored ({how})"
        yield sight.finding("order", Severity.INFO, said, _C3)
    yield from _sum_findings(sight, name)


def _sum_findings(sight: _Sight, name: str) -> Iterator[Finding]:
    """Whether what a function reported is the mean loss of its model's own distributions."""
    own, returned = sight.number("own"), sight.seen.get("returned")
    listed = returned if isinstance(returned, list) else []
    reported = [
        float(value) for value in listed if isinstance(value, int | float) and abs(value) < 1e15
    ]
    if not own or not reported or min(abs(value - own) for value in reported) < 0.02 * own:
        return
    said = f"{name} reports {reported[0]:.4f}; the mean loss of the model's own distributions was"
    cure = "show that what is mixed in keeps the distribution normalised"
    yield sight.finding("own-loss", Severity.NOTE, f"{said} {own:.4f} nats", _C2, cure)
