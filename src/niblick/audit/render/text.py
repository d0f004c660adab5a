"""The readable report, in the shape of the challenge's published reviews, as text or as
Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath

from niblick.audit.render import escape
from niblick.audit.types import Finding, Report, Severity, Smoke, Span

COMPLIANCE = {
    "clean_neural": "LOOKS CLEAN - followed to its figure; nothing learns or keeps what it scores",
    "clean_ttt_score_first": (
        "LOOKS CLEAN - what it learns or counts at evaluation was scored before (score-first)"
    ),
    "flag_ngram": "FLAG - a count table is read with a key that holds the token being scored (C2)",
    "flag_slot": "FLAG - a delta is optimised on the positions that are then scored (C1, C3)",
    "flag_prequant_ttt": (
        "FLAG - weights are trained on validation tokens that are scored afterwards (C3)"
    ),
    "flag_other": "FLAG - breaks another rule of a valid score",
    "import_fail": "IMPORT_FAIL - the script cannot be imported, for a reason of its own",
    "hold_unclear": "HOLD - the evidence does not decide",
}
_COVERAGE = {"examined": "Examined", "not-examined": "Not examined"}
_ORDER = (Severity.BREACH, Severity.WARNING, Severity.NOTE, Severity.INFO)
_HEADINGS = {
    "dynamic": "seen when run",
    "static": "read in the code",
    "record": "from files and logs",
}


def smoke_line(smoke: Smoke | None) -> str:
    """One line about the import, as the published reviews give it; foreign text in it is made
    plain.
    """
    if smoke is None:
        return "not run"
    if smoke.status == "SMOKE_TEST_PASS":
        parts = [f"import OK in {smoke.seconds:.2f}s" if smoke.seconds is not None else "import OK"]
        shape = (("dim", smoke.dim), ("layers", smoke.layers), ("vocab", smoke.vocab))
        parts += [f"{label}={value}" for label, value in shape if value is not None]
        if smoke.parameters is not None:
            parts.append(f"params={smoke.parameters:,}")
        parts += [f"code={smoke.code_bytes} B", "SMOKE_TEST_PASS"]
        stood = f"; stand-ins for {escape.plain(smoke.missing)}" if smoke.missing else ""
        return ", ".join(parts) + f" (Python {smoke.python}, {smoke.isolation}{stood})"
    said = escape.plain(smoke.error or "no reason given")
    if smoke.status == "NOT_RUN":
        return f"not run - {said}"
    whose = (
        "the submission's own"
        if smoke.own_fault
        else "the reviewing machine's, not the submission's"
    )
    cure = f"; cure: {escape.plain(smoke.cure)}" if smoke.cure else ""
    return f"{smoke.status} - {said} (Python {smoke.python}; the fault is {whose}{cure})"


def place(span: Span | None) -> str:
    """`file:12-15`, with a word where the lines are those of unpacked text."""
    if span is None:
        return ""
    lines = f"{span.start}" if span.start == span.end else f"{span.start}-{span.end}"
    return f"{span.file}:{lines}" + (" (unpacked)" if span.unpacked else "")


def title(report: Report) -> str:
    """The claimed name, else the path's last part."""
    return str(report.record.get("name") or PurePath(report.path).name or report.path)


def score(report: Report) -> str:
    """Claimed bits per byte, what was recomputed, and what the logs' mean is."""
    claimed, mean = report.record.get("claimed_bpb"), report.record.get("mean_bpb")
    said = f"{claimed:.5f} claimed" if isinstance(claimed, float) else "no score claimed"
    again, error = report.record.get("recomputed_bpb"), report.record.get("recompute_error")
    if isinstance(again, float):
        of, on = report.record["recomputed_of"], report.record["recomputed_on"]
        said += f"; {again:.5f} recomputed from {of} on {on}"
    elif error is not None:
        said += f"; not recomputed: {error}"
    if isinstance(mean, float):
        said += f"; {mean:.5f} mean of the logs' last results (std {report.record.get('std_bpb')})"
    return said


def report_text(report: Report, *, verbose: bool = False) -> str:
    """The report as lines of plain text; `verbose` lists notes of severity info too."""
    return (
        "\n".join(_lines(report, escape.plain, escape.plain, strong=lambda s: s, verbose=verbose))
        + "\n"
    )


def report_markdown(report: Report) -> str:
    """The report as a Markdown section."""
    return "\n".join(
        _lines(report, escape.markdown, escape.code, strong=lambda s: f"**{s}**", heading="## ")
    )


def reports_markdown(reports: Iterable[Report]) -> str:
    """Several reports as one Markdown document, with a table in front where there are more than
    one.
    """
    listed = list(reports)
    parts = [] if len(listed) == 1 else [_table(listed)]
    return "\n\n".join([*parts, *(report_markdown(report) for report in listed)]) + "\n"


def _table(reports: list[Report]) -> str:
    rows = [
        f"| {escape.markdown(report.path)} | {escape.markdown(report.verdict)} "
        f"| {escape.markdown(report.recommendation)} |"
        for report in reports
    ]
    return "\n".join(["| path | verdict | recommendation |", "|---|---|---|", *rows])


def _lines(
    report: Report,
    show: Callable[[object], str],
    mono: Callable[[object], str],
    *,
    strong: Callable[[str], str],
    heading: str = "",
    verbose: bool = True,
) -> Iterator[str]:
    gap = "\n" if heading else ""
    yield f"{heading}{show(title(report))}{gap}"
    yield f"{strong('Recommendation:')} {show(report.recommendation)}{gap}"
    yield f"{strong('Verdict:')} {mono(report.verdict)}{gap}"
    yield f"{strong('Path:')} {mono(report.path)}{gap}"
    yield f"{strong('BPB:')} {show(score(report))}{gap}"
    yield f"{strong('Compliance:')} {show(COMPLIANCE.get(report.verdict, report.verdict))}{gap}"
    for label, said in coverage(report):
        yield f"{strong(label + ':')} {show(said)}{gap}"
    yield f"{strong('What was found:')}{gap}"
    weighed = [f for f in report.findings if f.rule not in _COVERAGE]
    shown = [f for f in sorted(weighed, key=_weight) if verbose or _weight(f) < 3]
    if not shown:
        yield "- nothing that touches a rule"
    for finding in shown:
        yield from _finding(finding, show, mono)
    hidden = len(weighed) - len(shown)
    if hidden:
        yield f"- and {hidden} remark{'s' if hidden > 1 else ''} without weight"
    yield f"{gap}{strong('CPU smoke test:')} {show(smoke_line(report.smoke))}"


def coverage(report: Report) -> list[tuple[str, str]]:
    """What was examined and what was not, under their labels."""
    found = {f.rule: f.evidence for f in report.findings if f.rule in _COVERAGE}
    run = "" if report.smoke is not None else "nothing was run; "
    return [
        (label, (run if rule == "not-examined" else "") + found[rule])
        for rule, label in _COVERAGE.items()
        if rule in found
    ]


def _weight(finding: Finding) -> int:
    return _ORDER.index(finding.severity)


def _finding(
    finding: Finding, show: Callable[[object], str], mono: Callable[[object], str]
) -> Iterator[str]:
    where = f" at {mono(place(finding.span))}" if finding.span else ""
    how = _HEADINGS.get(finding.source, finding.source)
    yield (
        f"- {finding.severity.value.upper()} {mono(finding.rule)}{where}, {how}:"
        f" {show(finding.evidence)}"
    )
    if finding.severity is not Severity.INFO:
        yield f"  Rule: {show(finding.pointer)} Cure: {show(finding.cure)}"
