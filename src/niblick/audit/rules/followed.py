"""Whether the program was followed to a reported figure, what of it was examined and what was not;
what was not followed can never be called clean.
"""

from __future__ import annotations

from niblick.audit.flow.figures import honest
from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "followed"


@rule("followed")
def check(case: Case) -> list[Finding]:
    """What was examined, what was not, and one finding that holds the submission where its figure
    is not understood.
    """
    return [*_understood(case), *_coverage(case)]


def _understood(case: Case) -> list[Finding]:
    reasons = list(_reasons(case))
    if not reasons or (case.submission.source is not None and case.tree is None):
        return []
    return [
        case.finding(
            RULE,
            Severity.WARNING,
            f"The evaluation was not followed to its figure: {'; '.join(reasons)}.",
            verdict="hold_unclear",
            pointer="record",
            cure="Read the script, or review the one that prints the figure.",
        )
    ]


def _reasons(case: Case) -> list[str]:
    trace = case.trace
    if case.submission.source is None:
        return ["the folder holds no Python script"]
    out = [note for note in trace.notes if note.startswith("limit:")]
    if not trace.complete and not out:
        out.append("the program was not followed to its end")
    out += [note for note in dict.fromkeys(trace.notes) if "not followed" in note][:3]
    if not any(event.targets for event in trace.scores):
        out.append("nothing that it runs scores a validation token")
    elif not trace.reported:
        out.append("no sum of losses meets a count of bytes")
    if case.claimed.unseen:
        out.append("no score that was seen comes to the place that prints the claimed figure")
    return out


def _coverage(case: Case) -> list[Finding]:
    """What this review looked at, and what it did not, in place of a promise."""
    if case.tree is None:
        return []
    return [
        case.finding(rule, Severity.INFO, said, pointer="record", cure="Nothing to do.")
        for rule, said in (("examined", _examined(case)), ("not-examined", _left_out(case)))
    ]


def _examined(case: Case) -> str:
    trace, command = case.trace, case.submission.command
    as_run = f"as {command.source} runs it" if command else "with its own defaults"
    if case.defaults:
        as_run = "with its own defaults, as its documented run scores nothing,"
    plain = sum(f.content is not None and honest(f.content) for f in trace.figures)
    held = sum(bool(event.held) for event in trace.states)
    scores = sum(bool(event.targets) for event in trace.scores)
    return (
        f"the program, followed {as_run} for {trace.steps:,} steps of work through"
        f" {len(trace.reached)} of its functions; {scores} places and times where tokens"
        f" of the validation stream were scored, {len(trace.updates)} updates of weights or tensors"
        f" by such tokens, {held} uses of counts or other state that holds them; {plain} of"
        f" {len(trace.figures)} printed figures found to be a plain sum of losses over bytes"
    )


def _left_out(case: Case) -> str:
    trace = case.trace
    functions = {f.name for f in case.functions}
    unread = [p.name for p in case.submission.context if p.suffix not in {".py", ".sh"}]
    parts = [
        "whether the model itself looks ahead, which only running it shows",
        "the weights, the training data and the bytes of each token",
        f"{len(functions - trace.reached)} of {len(functions)} functions that the run did not come"
        " to or that a model calls inside itself",
    ]
    if unread:
        parts.append(f"compiled code beyond its token gates ({', '.join(sorted(unread)[:3])})")
    unknown = sum(f.content is None and not f.warps for f in trace.figures)
    if unknown:
        parts.append(f"{unknown} printed figures whose making could not be followed in numbers")
    return "; ".join(parts)
