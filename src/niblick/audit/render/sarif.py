"""SARIF 2.1.0, the format of code-scanning tools: one run, one result a finding, verdicts as
properties.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from niblick.audit.render.escape import sarif
from niblick.audit.render.text import COMPLIANCE, smoke_line
from niblick.audit.types import Finding, Report, Severity

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {
    Severity.BREACH: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "note",
    Severity.INFO: "none",
}


def reports_sarif(reports: Iterable[Report], version: str) -> str:
    """The SARIF log of `reports`; `version` is this package's."""
    listed = list(reports)
    results = [_result(report, finding) for report in listed for finding in report.findings]
    results += [_import_result(report) for report in listed if report.verdict == "import_fail"]
    rules = {result["ruleId"]: result["properties"]["pointer"] for result in results}
    driver = {
        "name": "niblick audit",
        "version": version,
        "rules": [
            {"id": rule, "shortDescription": {"text": sarif(pointer) or rule}}
            for rule, pointer in rules.items()
        ],
    }
    summary = [
        {
            "path": sarif(report.path),
            "verdict": report.verdict,
            "recommendation": sarif(report.recommendation),
        }
        for report in listed
    ]
    run = {"tool": {"driver": driver}, "results": results, "properties": {"reports": summary}}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _result(report: Report, finding: Finding) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": sarif(f"{finding.evidence} Cure: {finding.cure}")},
        "properties": {
            "pointer": sarif(finding.pointer),
            "source": finding.source,
            "verdict": finding.verdict,
            "severity": finding.severity.value,
        },
    }
    if finding.span is not None:
        region: dict[str, Any] = {"startLine": max(1, finding.span.start)}
        if finding.span.end > finding.span.start:
            region["endLine"] = finding.span.end
        place: dict[str, Any] = {"artifactLocation": {"uri": _uri(report.path, finding.span.file)}}
        if (
            finding.span.unpacked
        ):  # lines of text that no file holds: they would point at the wrong place
            result["properties"]["unpackedRegion"] = region
        else:
            place["region"] = region
        result["locations"] = [{"physicalLocation": place}]
    return result


def _import_result(report: Report) -> dict[str, Any]:
    return {
        "ruleId": "import-fail",
        "level": "error",
        "message": {"text": sarif(smoke_line(report.smoke))},
        "properties": {
            "pointer": COMPLIANCE["import_fail"],
            "source": "dynamic",
            "verdict": "import_fail",
        },
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(report.path, "")}}}],
    }


def _uri(root: str, file: str) -> str:
    """A relative reference where the path is one; `file` is taken below a folder, in place of a
    script.
    """
    base = PurePath(root)
    folder = base.parent if base.suffix == ".py" else base
    if not file or base.name == PurePath(file).name:
        path = base
    else:
        path = folder / PurePath(file.lstrip("/"))
    return quote(os.fsencode(path.as_posix().removeprefix("./")))
