"""The rules of a review, one a file; each turns a `Case` into findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import RULES, load_rules, rule
from niblick.audit.types import Finding, Severity
from niblick.audit.unpack import unpack

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")

__all__ = ["RULES", "Case", "apply", "checked", "checks", "rule"]


def apply(case: Case) -> tuple[Finding, ...]:
    """The findings of every rule on one case; a rule that breaks down holds it."""
    return tuple(finding for name, check in checks(case) for finding in checked(case, name, check))


def checks(case: Case) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    """Every rule with its name, ready to look at the case, and those of text at each module that
    the script carries.
    """
    load_rules()
    for part in (case, *_carried(case)):
        for name in RULES:
            if part is case or RULES[name].of_text:
                yield name, partial(RULES[name].check, part)


def checked(case: Case, name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What one rule finds; if it breaks down, that alone, and the others' findings stay."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - hostile input may break a rule, not a review
        said = f"The rule {name} broke down here ({type(error).__name__}: {str(error)[:120]})."
        return [
            case.finding(
                "audit-failure",
                Severity.WARNING,
                said,
                verdict="hold_unclear",
                pointer="record",
                cure="Report this as an error of the audit, and read the script.",
            )
        ]


def _carried(case: Case) -> Iterator[Case]:
    """The case once more for every module that the script carries in itself."""
    for name, text in case.carried.items():
        if name.endswith(".py") and text.strip() and case.submission.source is not None:
            source = unpack(text.encode("utf-8", "replace"), name).source
            submission = replace(case.submission, source=source)
            yield replace(case, submission=submission, carried={}, modules=())
