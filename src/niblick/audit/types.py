"""The nouns of an audit: a submission as read, what a rule found, what a smoke test saw, and the
report.

Every value is frozen and holds plain data, so a report can be compared, printed or written as JSON
without running anything. No module of `niblick.audit` imports torch outside the sandboxed child
process.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Severity(StrEnum):
    """How much a finding weighs; only a `BREACH` that names a verdict decides one."""

    INFO = "info"
    NOTE = "note"
    WARNING = "warning"
    BREACH = "breach"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Lines `start`..`end` (1-based, inclusive) of `file`; `unpacked` means lines of the unpacked
    text.
    """

    file: str
    start: int
    end: int
    unpacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing a rule saw: where, the evidence in a sentence, the rule it touches and what would
    cure it.

    `verdict` names the verdict this finding argues for, if any. `source` is "static" (read),
    "dynamic" (run) or "record" (the folder's files and logs).
    """

    rule: str
    severity: Severity
    verdict: str | None
    span: Span | None
    evidence: str
    pointer: str
    cure: str
    source: str = "static"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One script after unpacking: `text` is what would run, `layers` the packing it was wrapped in.

    `shipped_bytes` is the size of the file on disk, `unpacked_bytes` that of `text` in UTF-8.
    `tree` is None when the text does not parse, and `error` then says why. `resolved` are the calls
    (as text, with their number) that would run text which was read.
    """

    path: str
    text: str
    shipped_bytes: int
    unpacked_bytes: int
    layers: tuple[str, ...]
    tree: ast.Module | None
    error: str | None
    resolved: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """The documented way to run a script: command text, variables it sets, processes, and where it
    was read.
    """

    text: str
    environment: dict[str, str]
    world_size: int | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A folder seen as a submission: the script under review, the files beside it and what
    documents it.
    """

    root: Path
    script: Path | None
    source: Source | None
    context: tuple[Path, ...]
    command: RunCommand | None
    readme: str | None
    metadata: dict[str, object] | None


@dataclass(frozen=True, kw_only=True)
class Smoke:
    """What importing the script in the sandbox showed.

    `status` is "SMOKE_TEST_PASS", "IMPORT_FAIL", "ENVIRONMENT" or "NOT_RUN"; `own_fault` tells a
    failure of the submission from one of the machine, `missing` names what was not there. Unknown
    numbers are None.
    """

    status: str
    seconds: float | None
    dim: int | None
    layers: int | None
    vocab: int | None
    parameters: int | None
    code_bytes: int
    python: str
    error: str | None
    missing: str | None
    own_fault: bool | None
    cure: str | None
    isolation: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The review of one path: verdict, recommendation and everything they rest on."""

    path: str
    verdict: str
    recommendation: str
    findings: tuple[Finding, ...]
    smoke: Smoke | None
    record: dict[str, object]

    def __repr__(self) -> str:
        found = f"{len(self.findings)} findings"
        return f"<niblick.audit.Report {self.verdict} for {self.path!r}: {found}>"
