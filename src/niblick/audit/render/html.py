"""One self-contained HTML page of reports: no script, no link out, every foreign character
escaped.
"""

from __future__ import annotations

from collections.abc import Iterable

from niblick.audit.render.escape import hyper
from niblick.audit.render.text import COMPLIANCE, place, score, smoke_line, title
from niblick.audit.types import Finding, Report

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0"
    " 1rem;color:#222}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem"
    " .6rem;border-bottom:1px solid #ddd;vertical-align:top}code{background:#f4f4f4;padding:0"
    " .2rem}.breach{color:#a40000}.warning{color:#8a5a00}section{margin-top:2.5rem}"
)

_HEADER = "<tr><th>severity</th><th>rule</th><th>where</th><th>evidence</th><th>cure</th></tr>"


def reports_html(reports: Iterable[Report]) -> str:
    """A page with a summary table and one section a report."""
    listed = list(reports)
    rows = "".join(
        f"<tr><td>{hyper(report.path)}</td><td>{hyper(report.verdict)}</td><td>{hyper(report.recommendation)}</td></tr>"
        for report in listed
    )
    sections = "".join(_section(report) for report in listed)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>niblick audit</title>'
        '<meta http-equiv="Content-Security-Policy"'
        f' content="{policy}"><style>{_STYLE}</style></head><body>'
        f"<h1>Audit</h1><table><tr><th>path</th><th>verdict</th><th>recommendation</th></tr>{rows}</table>"
        f"{sections}</body></html>\n"
    )


def _section(report: Report) -> str:
    findings = "".join(_finding(finding) for finding in report.findings)
    compliance = COMPLIANCE.get(report.verdict, report.verdict)
    return (
        f"<section><h2>{hyper(title(report))}</h2><p><b>Recommendation:</b>"
        f" {hyper(report.recommendation)}<br><b>Verdict:</b> {hyper(report.verdict)}</p>"
        f"<p><code>{hyper(report.path)}</code></p><p><b>BPB:</b>"
        f" {hyper(score(report))}<br><b>Compliance:</b>"
        f" {hyper(compliance)}</p><table>{_HEADER}{findings}</table><p><b>CPU smoke test:</b>"
        f" {hyper(smoke_line(report.smoke))}</p></section>"
    )


def _finding(finding: Finding) -> str:
    cells = (
        f"{finding.severity.value} ({finding.source})",
        finding.rule,
        place(finding.span),
        finding.evidence,
        finding.cure,
    )
    inner = "".join(f"<td>{hyper(cell)}</td>" for cell in cells)
    return f'<tr class="{finding.severity.value}">{inner}</tr>'
