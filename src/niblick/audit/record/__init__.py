"""The rules of the record: what a submission folder must hold, and whether its claim agrees with
its logs.

`record_findings` reads files only. Missing evidence is never a breach; a size or time over the cap
is.
"""

from __future__ import annotations

import math
from typing import Any

from niblick.audit.record.checks import Evidence, check_all
from niblick.audit.record.claims import artifact_files, read_claim
from niblick.audit.record.logs import Log, find_logs, read_log
from niblick.audit.types import Finding, Submission

__all__ = ["record_findings"]


def record_findings(submission: Submission) -> tuple[dict[str, object], tuple[Finding, ...]]:
    """The record as plain data, and what is wrong with it."""
    root = submission.root
    logs = (
        [read_log(path, root) for path in find_logs(root)]
        if submission.metadata is not None
        else []
    )
    evidence = Evidence(
        submission=submission,
        claim=read_claim(submission.metadata or {}),
        logs=tuple(logs),
        artifacts=artifact_files(root) if submission.metadata is not None else {},
    )
    return _describe(evidence), tuple(check_all(evidence))


def _describe(evidence: Evidence) -> dict[str, object]:
    claim, bpbs = evidence.claim, [log.final.bpb for log in evidence.logs if log.final]
    record: dict[str, Any] = {
        "name": claim.name,
        "author": claim.author,
        "date": claim.date,
        "claimed_bpb": claim.bpb,
        "claimed_bytes": claim.bytes_total,
        "claimed_parameters": claim.parameters,
        "code_bytes": evidence.code_bytes,
        "artifacts": dict(evidence.artifacts),
        "seeds": sorted({log.seed for log in evidence.logs if log.seed is not None}),
        "logs": [_describe_log(log) for log in evidence.logs],
    }
    if len(bpbs) > 1:
        mean = math.fsum(bpbs) / len(bpbs)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in bpbs) / (len(bpbs) - 1))
        record |= {"mean_bpb": round(mean, 6), "std_bpb": round(spread, 6)}
    return record


def _describe_log(log: Log) -> dict[str, object]:
    return {
        "file": log.name,
        "seed": log.seed,
        "parameters": log.parameters,
        "train_seconds": log.train_seconds,
        "bpb": log.final.bpb if log.final else None,
        "stage": log.final.stage if log.final else None,
        "bytes": min(log.total_bytes) if log.total_bytes else None,
    }
