"""From findings to one verdict and a recommendation.

Precedence: an import failure of the submission's own, then flags, then clean, then `hold_unclear`.
Only a `BREACH` decides. What running the code shows can add to what reading found, and takes away
nothing: it comes from the code itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from niblick.audit.types import Finding, Severity, Smoke

FLAGS = ("flag_ngram", "flag_prequant_ttt", "flag_slot", "flag_other")
VERDICTS = ("import_fail", *FLAGS, "clean_ttt_score_first", "clean_neural", "hold_unclear")


def decide(
    findings: Iterable[Finding], smoke: Smoke | None, *, understood: bool = True
) -> tuple[str, str]:
    """(verdict, recommendation). `understood` tells whether reading came to its end at all."""
    findings = tuple(findings)
    breaches = {f.verdict for f in findings if f.severity is Severity.BREACH and f.verdict}
    if "import_fail" in breaches or (
        smoke is not None and smoke.status == "IMPORT_FAIL" and smoke.own_fault
    ):
        return "import_fail", "NEEDS AUTHOR ACTION: the script does not import"
    for flag in FLAGS:
        if flag in breaches:
            return flag, "DO NOT ACCEPT as a record: the score is not valid"
    suspected = {f.verdict for f in findings if f.severity is Severity.WARNING and f.verdict}
    if suspected & {*FLAGS, "hold_unclear"} or not understood:
        return (
            "hold_unclear",
            "HOLD: the evidence does not decide, a person should read the places named",
        )
    verdict = "clean_ttt_score_first" if _learns(findings) else "clean_neural"
    if any(f.severity is Severity.WARNING for f in findings):
        return verdict, "NEEDS AUTHOR ACTION: looks clean, but evidence is missing or inconsistent"
    return verdict, "LOOKS CLEAN: accept once the record's evidence is checked"


def _learns(findings: tuple[Finding, ...]) -> bool:
    return any(f.verdict == "clean_ttt_score_first" for f in findings)
