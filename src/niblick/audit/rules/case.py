"""What a rule looks at: one submission, the trace of its program, and helpers to word findings."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from niblick.audit.conditions import Scan, logs
from niblick.audit.flow.objects import ScoreEvent, Trace, UpdateEvent, Where
from niblick.audit.rules.claimed import Claimed, claimed
from niblick.audit.rules.program import Program
from niblick.audit.types import Finding, Severity, Span, Submission

POINTERS = {
    "C1": (
        "rules C1: the distribution for a token depends only on the artifact and on tokens"
        " before it"
    ),
    "C2": "rules C2: a full normalised distribution exists before the token is looked at",
    "C3": "rules C3: a token is scored from the state before any update that has seen it",
    "C4": "rules C4: one pass, no rescoring",
    "limits": "limits: size, time, and nothing but the artifact at evaluation",
    "data": "limits: validation data reaches only evaluation",
    "bytes": "scoring: bits per byte counts the bytes of the decoded text",
    "record": "records: the script runs inside its folder",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A submission with the trace of its documented run, or of one with the `defaults` of its code
    where that one scores nothing, and of the same run by one process `alone` where that may tell
    more; `carried` are files its loader writes, `modules` (file, tree) the Python modules beside
    its script.
    """

    submission: Submission
    trace: Trace
    alone: Trace | None = None
    carried: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    modules: tuple[tuple[str, ast.Module], ...] = ()
    defaults: bool = False

    @property
    def tree(self) -> ast.Module | None:
        return self.submission.source.tree if self.submission.source else None

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the script's tree, in the order of `ast.walk`."""
        return list(ast.walk(self.tree)) if self.tree is not None else []

    @cached_property
    def logs(self) -> list[list[str]]:
        """The lines of each log of the submission, read once for all rules."""
        return logs(self.submission.root, self.text)

    @cached_property
    def claimed(self) -> Claimed:
        """Which evaluation the submission's own figure comes from, where its logs tell."""
        return claimed(self.submission, self.logs, self.trace)

    @cached_property
    def functions(self) -> list[ast.FunctionDef]:
        """Every function definition of the script."""
        return [node for node in self.nodes if isinstance(node, ast.FunctionDef)]

    @cached_property
    def scan(self) -> Scan:
        """What the script prints, calls and reads from the environment, under which conditions."""
        return Scan(self._module)

    @cached_property
    def program(self) -> Program:
        """The script's calls, definitions and functions, looked up once for all rules."""
        return Program(self._module)

    @property
    def _module(self) -> ast.Module:
        return self.tree if self.tree is not None else ast.Module(body=[], type_ignores=[])

    @property
    def text(self) -> str:
        return self.submission.source.text if self.submission.source else ""

    def span(self, where: Where | None = None, *, line: int = 1, end: int | None = None) -> Span:
        """The place of an event, in lines of the unpacked text where the script is packed."""
        source = self.submission.source
        packed = bool(source and [layer for layer in source.layers if layer != "bom"])
        name = source.path if source else str(self.submission.root.name)
        if where is not None:
            line = where.line
            name = where.file if where.file and where.file != name else name
        return Span(file=name, start=line, end=max(end or line, line), unpacked=packed)

    def finding(
        self,
        rule: str,
        severity: Severity,
        evidence: str,
        *,
        pointer: str,
        cure: str,
        verdict: str | None = None,
        where: Where | None = None,
        line: int | None = None,
        end: int | None = None,
    ) -> Finding:
        span = (
            self.span(where, line=line or 1, end=end)
            if where is not None or line is not None
            else None
        )
        return Finding(
            rule=rule,
            severity=severity,
            verdict=verdict,
            span=span,
            evidence=evidence,
            pointer=POINTERS[pointer],
            cure=cure,
        )


def positions(bits: int) -> str:
    """A set of stream positions in words, as places in the synthetic stream."""
    if not bits:
        return "no position"
    low, high = (bits & -bits).bit_length() - 1, bits.bit_length() - 1
    return f"{bits.bit_count()} positions within {low}..{high}"


def scored(trace: Trace) -> list[ScoreEvent]:
    """The score events that make up a reported figure: those that met a byte count (in a loss that
    is trained on: those of a figure so named), else those without gradients.
    """
    named = frozenset[int]().union(*[f.scores for f in trace.figures if f.named])
    counted = trace.reported - (trace.trained - named)
    chosen = [e for e in trace.scores if e.number in counted]
    return chosen or [e for e in trace.scores if e.no_grad]


def violations(trace: Trace, kind: str) -> list[ScoreEvent]:
    """Reported scores of positions that their own parameters (of leaf kind `kind`) had been trained
    on.
    """
    return [
        e
        for e in scored(trace)
        if overlap(trace, e) and not e.widened and kind in learnt_kinds(trace, e)
    ]


def overlap(trace: Trace, event: ScoreEvent) -> int:
    """The positions a score was added up for that its parameters had already learnt, as far as the
    places are known.
    """
    both = (trace.kept(event.number) or event.targets) & event.seen
    vague = (
        [u for u in trace.updates if "somewhere" in u.marks and u.order < event.order]
        if both
        else []
    )
    if not vague:
        return both
    known = 0
    for update in trace.updates:
        if update.order < event.order and not (update in vague and _after_scores(trace, update)):
            known |= update.positions
    return both & known


def certain(trace: Trace, event: ScoreEvent, claimed: frozenset[int] = frozenset()) -> bool:
    """Whether a score is surely taken of positions that had been learnt and is one that counts: it
    is known which of its positions were added up, or all of them had been learnt; it is in a figure
    that counts bytes, if any does, and in the claimed one, where the logs tell which that is.
    """
    placed = trace.kept(event.number) or not event.targets & ~event.seen
    meant = not trace.counted or event.number in trace.counted
    return bool(event.certain and placed and meant and (not claimed or event.number in claimed))


def _after_scores(trace: Trace, update: UpdateEvent) -> bool:
    """Whether the function that made an update had scored without learning before it."""
    return any(
        e.order < update.order and e.no_grad and e.where.function == update.where.function
        for e in trace.scores
    )


def learnt_kinds(trace: Trace, event: ScoreEvent) -> frozenset[str]:
    """The kinds of leaf that learnt any of the positions a score overlaps."""
    both = overlap(trace, event)
    kinds: set[str] = set()
    for update in trace.updates:
        if update.order < event.order and update.positions & both:
            kinds |= update.leaf_kinds
    return frozenset(kinds) & (event.leaf_kinds | {"module"}) or event.leaf_kinds


def interleaved(trace: Trace, update: UpdateEvent) -> bool:
    """Whether later updates of a phase of training learn what was scored after its first, as
    score-first training does.
    """
    phase = [u for u in trace.updates if u.where == update.where]
    first = min(u.order for u in phase)
    return any(
        first < e.order < u.order
        and e.no_grad
        and e.targets & u.positions
        and not overlap(trace, e)
        for u in phase
        for e in trace.scores
    )


def first_by_line(events: Iterable[ScoreEvent]) -> list[ScoreEvent]:
    """One event per place, in the order of the run."""
    seen: dict[tuple[str, int], ScoreEvent] = {}
    for event in events:
        seen.setdefault((event.where.file, event.where.line), event)
    return list(seen.values())
