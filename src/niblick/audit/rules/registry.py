"""The registry of rules: a rule is one function from a case to findings, under one name.

Rules of other packages join by the same decorator; a package that declares the entry point group
`niblick.audit_rules` has its modules imported before a review.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from niblick.audit.rules.case import Case
from niblick.audit.types import Finding
from niblick.registry import Registry

Check = Callable[[Case], list[Finding]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule; one `of_text` looks at text alone, and so at each module that a script carries
    too.
    """

    check: Check
    of_text: bool


RULES: Registry[Rule] = Registry("audit rule")
"""Every rule of a review, by name."""


def rule(name: str, *, of_text: bool = False) -> Callable[[Check], Check]:
    """Decorator that files a function under `name` as a rule."""

    def add(check: Check) -> Check:
        RULES.register(name)(Rule(check=check, of_text=of_text))
        return check

    return add


@cache
def load_rules() -> None:
    """Imports the modules that other packages declare as rules, once."""
    for point in entry_points(group="niblick.audit_rules"):
        point.load()
