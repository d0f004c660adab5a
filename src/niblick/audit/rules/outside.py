"""Network, downloads and other programs used by the run."""

from __future__ import annotations

from niblick.audit.rules.case import Case, scored
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "outside-help"
_NETWORK = (
    "requests",
    "urllib",
    "socket",
    "http",
    "huggingface_hub",
    "aiohttp",
    "boto3",
    "datasets",
    "wandb",
)


@rule("outside")
def check(case: Case) -> list[Finding]:
    """One finding per kind of outside call; a download during evaluation breaks the limits."""
    reported = scored(case.trace)
    first_score = min((e.order for e in reported), default=None)
    out: dict[str, Finding] = {}
    for call in case.trace.calls:
        if call.name == "calibration" or call.name in out:
            continue
        network = call.name.startswith(_NETWORK) or call.name.endswith(
            ("download", "urlopen", "urlretrieve")
        )
        late = first_score is not None and call.order > first_score
        out[call.name] = case.finding(
            RULE,
            Severity.WARNING if network and late else Severity.NOTE,
            f"{call.where.function} calls"
            f" {call.name}{' after scoring has begun' if network and late else ''}"
            + (f" ({call.detail})" if call.detail else "")
            + ".",
            pointer="limits",
            where=call.where,
            cure="Ship what the run needs inside the folder and the artifact.",
        )
    return list(out.values())
