"""The checks of a record, one function each; every one of them yields findings and reads nothing
but `Evidence`.

Limits: code as shipped plus compressed model at most 16,000,000 bytes; training 600 s and
evaluation 600 s on the eight accelerators of the ten-minute track, read from the logs with 2 % of
grace, since the last step may end after the bell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from niblick.audit.conditions import logged_processes, stated_processes
from niblick.audit.record.claims import Claim
from niblick.audit.record.logs import Log
from niblick.audit.record.statistics import LARGEST_P, LEAST_NATS, significance
from niblick.audit.types import Finding, Severity, Span, Submission

CAP_BYTES, CAP_SECONDS, GRACE = 16_000_000, 600.0, 1.02
TRACK_ACCELERATORS = 8
_AGREES = 6e-4  # bits per byte: claims are often rounded to three or four digits


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the checks may use."""

    submission: Submission
    claim: Claim
    logs: tuple[Log, ...]
    artifacts: dict[str, int]

    @property
    def code_bytes(self) -> int | None:
        """The script's size as shipped."""
        source = self.submission.source
        return source.shipped_bytes if source else None

    @property
    def timed(self) -> bool:
        """Whether the submission is on the ten-minute track."""
        where = f"{self.submission.root.resolve()} {self.claim.track or ''}".lower()
        return "10min" in where and "non_record" not in where and "non-record" not in where


def check_all(evidence: Evidence) -> Iterator[Finding]:
    """Every finding about the record, in the order a reader would look."""
    yield from check_files(evidence)
    if evidence.submission.metadata is None:
        return
    for check in (check_fields, check_size, check_time, check_seeds, check_score, check_code_bytes):
        yield from check(evidence)


def _finding(
    rule: str,
    severity: Severity,
    evidence: str,
    pointer: str,
    cure: str,
    *,
    file: str = "submission.json",
    line: int | None = None,
) -> Finding:
    return Finding(
        rule=rule,
        severity=severity,
        verdict="flag_other" if severity is Severity.BREACH else None,
        span=Span(file=file, start=line or 1, end=line or 1),
        evidence=evidence,
        pointer=pointer,
        cure=cure,
        source="record",
    )


def check_files(evidence: Evidence) -> Iterator[Finding]:
    """README.md, submission.json, logs, the script, and requirements.txt where packages are
    named.
    """
    submission = evidence.submission
    missing = []
    if submission.readme is None:
        missing.append("README.md")
    if submission.metadata is None:
        missing.append("submission.json (absent, or not a JSON object)")
    elif not evidence.logs:
        missing.append("training logs")
    if submission.script is None:
        missing.append("a training script")
    if missing:
        yield _finding(
            "record-missing-file",
            Severity.NOTE,
            f"the folder lacks {', '.join(missing)}",
            "Limits and evidence: a folder with README.md, submission.json, logs and the script",
            "add what is missing",
            file=".",
        )


def check_fields(evidence: Evidence) -> Iterator[Finding]:
    """The fields of submission.json that a reader needs."""
    if evidence.claim.missing:
        yield _finding(
            "record-missing-field",
            Severity.NOTE,
            f"submission.json lacks {', '.join(evidence.claim.missing)}",
            "Limits and evidence: submission.json has name, author, val_bpb, bytes_total, date",
            "fill the fields in from the logs",
        )


def check_size(evidence: Evidence) -> Iterator[Finding]:
    """Code as shipped plus model: from the files, from the claim, and from the logs of every
    seed.
    """
    code, claimed = evidence.code_bytes or 0, evidence.claim.bytes_total
    pointer = (
        "Limits and evidence: code bytes plus compressed model bytes <= 16,000,000, every seed"
    )
    cure = "shrink the model or the code until their sum fits"
    for name, size in evidence.artifacts.items():
        if size + code > CAP_BYTES:
            said = (
                f"{name} ({size:,} B) and the script ({code:,} B) are {size + code:,} B, over"
                f" {CAP_BYTES:,}"
            )
            yield _finding("record-size", Severity.BREACH, said, pointer, cure, file=name)
    text = evidence.submission.source.text if evidence.submission.source else ""
    read = {n: size for n, size in evidence.artifacts.items() if PurePath(n).name in text}
    together = sum(read.values()) + code
    if together > CAP_BYTES >= code + max(read.values(), default=0):
        said = (
            f"the script names {len(read)} artifacts, {', '.join(read)}: with it {together:,} B,"
            f" over {CAP_BYTES:,} if it needs them all"
        )
        yield _finding("record-size", Severity.WARNING, said, pointer, cure, file=next(iter(read)))
    sizes = {log.name: _counted(log, code) for log in evidence.logs if log.total_bytes}
    over = {name: size for name, size in sizes.items() if size > CAP_BYTES}
    claims_over = claimed is not None and claimed > CAP_BYTES
    if claims_over and over:
        said = f"bytes_total claims {claimed:,} B and the logs agree: over {CAP_BYTES:,}"
        yield _finding("record-size", Severity.BREACH, said, pointer, cure)
    elif claims_over:
        said = (
            f"bytes_total claims {claimed:,} B, over {CAP_BYTES:,}; neither the model nor a log"
            " shows its size"
        )
        yield _finding(
            "record-size",
            Severity.WARNING,
            said,
            pointer,
            "ship the compressed model, or correct the claim",
        )
    elif over:
        worst = max(over, key=lambda name: over[name])
        said = (
            f"the log's total with the shipped code is {over[worst]:,} B, over {CAP_BYTES:,}"
            f" ({len(over)} of {len(sizes)} logs)"
        )
        yield _finding("record-size", Severity.WARNING, said, pointer, cure, file=worst)


def _counted(log: Log, code: int) -> int:
    """A log's smallest total, with the code counted as shipped: many logs count it before it was
    packed.
    """
    total = min(log.total_bytes)
    return total - log.code_bytes + code if log.code_bytes and log.code_bytes < total else total


def check_time(evidence: Evidence) -> Iterator[Finding]:
    """Seconds of training and of the final evaluation, by the logs, on as many accelerators as the
    track has; one log of several may be of another run.
    """
    accelerators = stated_processes(evidence.submission) or TRACK_ACCELERATORS
    if not evidence.timed or accelerators < TRACK_ACCELERATORS:
        return
    pointer = (
        "Limits and evidence: training <= 600 s; evaluation <= 600 s more, all stages together"
    )
    limit = CAP_SECONDS * GRACE
    trained = {log.name: log.train_seconds for log in evidence.logs if log.train_seconds}
    over = {name: seconds for name, seconds in trained.items() if seconds > limit}
    if over:
        sure = len(over) == len(trained) and len(over) > 1
        name, seconds = max(over.items(), key=lambda pair: pair[1])
        said = (
            f"training took {seconds:.1f} s by the log, over {CAP_SECONDS:.0f} ({len(over)} of"
            f" {len(trained)} logs)"
        )
        severity = Severity.BREACH if sure else Severity.WARNING
        yield _finding("record-time", severity, said, pointer, "stop training in time", file=name)
    as_tracked = (logged_processes(evidence.submission) or 0) >= TRACK_ACCELERATORS
    for log in evidence.logs:
        stage = log.final.stage if log.final else ""
        if as_tracked and stage not in log.eval_seconds:
            stage = stage.removesuffix("_exact")  # which says the figure again, with more digits
        final, together = log.eval_seconds.get(stage), sum(log.eval_seconds.values())
        if final is not None and final > limit:
            said = (
                f"the final evaluation ({stage}) took {final:.1f} s by the log, over"
                f" {CAP_SECONDS:.0f}"
            )
            yield _finding(
                "record-time", Severity.BREACH, said, pointer, "evaluate faster", file=log.name
            )
        elif together > limit:
            said = (
                f"evaluations took {together:.1f} s together by the log; which of them count is not"
                " said"
            )
            yield _finding(
                "record-time", Severity.NOTE, said, pointer, "say which stages count", file=log.name
            )


def check_seeds(evidence: Evidence) -> Iterator[Finding]:
    """Three seeds of one configuration, each with its log, and an improvement that is certain
    enough.
    """
    seeds = {log.seed for log in evidence.logs if log.seed is not None and log.final}
    pointer = (
        "Limits and evidence: a new record beats the last by >= 0.005 nats at p < 0.01, normally"
        " three seeds"
    )
    if evidence.timed and len(seeds) < 3:
        said = f"logs of {len(seeds)} seed{'' if len(seeds) == 1 else 's'}; three are the norm"
        yield _finding(
            "record-seeds", Severity.NOTE, said, pointer, "add logs of further seeds", file="."
        )
    if evidence.claim.seeds is not None and evidence.claim.seeds > len(evidence.logs):
        said = (
            f"submission.json names {evidence.claim.seeds} seeds, the folder has"
            f" {len(evidence.logs)} logs"
        )
        yield _finding("record-seeds", Severity.NOTE, said, pointer, "add the missing logs")
    baseline = evidence.claim.baseline_bpb
    finals = _claimed_stage(evidence)
    if baseline is None or len(finals) < 2 or not all(loss for _, loss in finals):
        return
    losses = [loss for _, loss in finals if loss]
    nats_per_bit = sum(loss / bpb for bpb, loss in finals if loss) / len(losses)
    tested = significance(losses, baseline * nats_per_bit)
    if tested is not None and not tested.holds:
        said = (
            f"{tested.seeds} seeds improve on {baseline:.5f} bpb by {tested.improvement:.5f} nats"
            f" per token (p = {tested.p:.2g} of beating it by {LEAST_NATS}); {LEAST_NATS} at p <"
            f" {LARGEST_P} is asked"
        )
        yield _finding(
            "record-significance",
            Severity.NOTE,
            said,
            pointer,
            "run more seeds, or do not claim a record",
        )


def _claimed_stage(evidence: Evidence) -> list[tuple[float, float | None]]:
    """(bpb, loss) of each log at the stage whose mean is nearest to the claim; the last stage
    without one.
    """
    stages: dict[str, list[tuple[float, float | None]]] = {}
    for log in evidence.logs:
        for stage, result in {result.stage: result for result in log.results}.items():
            stages.setdefault(stage, []).append((result.bpb, result.loss))
    if not stages:
        return []
    claim = evidence.claim.bpb
    if claim is None:
        last = next((log.final.stage for log in evidence.logs if log.final), "")
        return stages.get(last, [])
    return min(
        stages.values(),
        key=lambda rows: (abs(sum(b for b, _ in rows) / len(rows) - claim), -len(rows)),
    )


def check_score(evidence: Evidence) -> Iterator[Finding]:
    """The claimed bits per byte is some log's result, or the mean of one stage over the logs."""
    claim = evidence.claim.bpb
    results = [(result, log) for log in evidence.logs for result in log.results]
    if claim is None or not results:
        return
    rows = _claimed_stage(evidence)
    mean = sum(bpb for bpb, _ in rows) / len(rows)
    nearest, log = min(results, key=lambda pair: abs(pair[0].bpb - claim))
    if min(abs(mean - claim), abs(nearest.bpb - claim)) <= _AGREES:
        return
    yield _finding(
        "record-score",
        Severity.WARNING,
        f"the claimed {claim:.5f} bpb is in no log and is no mean of one; the nearest is"
        f" {nearest.bpb:.5f}",
        "Limits and evidence: the logs show the claimed score",
        "claim what the logs show, or add the log",
        file=log.name,
        line=nearest.line,
    )


def check_code_bytes(evidence: Evidence) -> Iterator[Finding]:
    """The code size that claim and logs count is that of the script as shipped."""
    code = evidence.code_bytes
    said = {log.name: log.code_bytes for log in evidence.logs if log.code_bytes}
    if evidence.claim.bytes_code:
        said["submission.json"] = evidence.claim.bytes_code
    low = {name: size for name, size in said.items() if code and size < code * 0.98 - 64}
    if code and low and len(low) == len(said):
        name, size = min(low.items(), key=lambda pair: pair[1])
        room = _largest_total(evidence)
        over = room is not None and room - size + code > CAP_BYTES
        yield _finding(
            "record-code-bytes",
            Severity.WARNING if over else Severity.NOTE,
            f"{PurePath(name).name} counts {size:,} B of code, the script as shipped has {code:,} B"
            + ("; with that the total is over the cap" if over else ""),
            "Limits and evidence: code counts as shipped",
            "count the script that is shipped",
            file=name,
        )


def _largest_total(evidence: Evidence) -> int | None:
    totals = [min(log.total_bytes) for log in evidence.logs if log.total_bytes]
    return max(totals, default=evidence.claim.bytes_total)
