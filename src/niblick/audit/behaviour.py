"""What running a script showed: the model's behaviour on random tokens, and what an import tries
beyond computing.

These findings rest on what was seen, and say so (`source="dynamic"`). A script can falsify what is
seen of it, so none of these findings clears anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from niblick.audit.render.escape import plain
from niblick.audit.types import Finding, Severity, Span

_LEAK, _NOISE = 0.02, 1e-3  # of the logits' standard deviation
_EFFECTS = "Limits and evidence: nothing but the artifact at evaluation"
_C1 = "Conditions C1: a distribution depends only on the artifact and on tokens before its own"


def findings_from(result: dict[str, Any], file: str, *, packed: bool) -> Iterator[Finding]:
    """The findings that a worker's report on script `file` gives rise to; it describes foreign code
    and may hold anything.
    """
    attempts, probe = result.get("attempts"), result.get("probe")
    for attempt in attempts[:10] if isinstance(attempts, list) else ():
        place, _, what = str(attempt)[:400].partition(": ")
        line = place.rpartition(":")[2]
        sight = _Sight(file, packed, {"line": int(line) if line.isdecimal() else 1})
        said = f"while being imported it {what[:200] or 'tries more than computing'}"
        cure = "do this in main, before the clock starts"
        yield sight.finding("import-effects", Severity.NOTE, said, _EFFECTS, cure)
    if isinstance(probe, dict) and "unusable" not in probe:
        yield from _probe_findings(_Sight(file, packed, probe))


@dataclass(frozen=True)
class _Sight:
    """One part of a worker's report, taken for numbers and names only."""

    file: str
    packed: bool
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
        span = Span(file=self.file, start=line, end=line, unpacked=self.packed)
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
