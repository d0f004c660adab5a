"""Whether the documented run can reach a function that the engine did not follow itself.

A function counts as reachable when it was interpreted, or when some call of it stands in a
reachable function under no switch that the documented run leaves off.
"""

from __future__ import annotations

from niblick.audit.conditions import Guard
from niblick.audit.reads import UNDECIDED
from niblick.audit.rules.case import Case


class Reach:
    """Reachability by name over one script."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scan = case.scan
        self.known: dict[str, bool] = {}

    def possible(self, name: str, depth: int = 0) -> bool:
        """Whether a function of this name can run in the documented run."""
        if name in self.case.trace.reached or name == "<module>":
            return True
        if name not in self.known:
            self.known[name] = False
            self.known[name] = depth < 20 and any(
                not any(self.closed(guard) for guard in guards) and self.possible(outer, depth + 1)
                for guards, outer in self.scan.calls.get(name, [])
            )
        return self.known[name]

    def closed(self, guard: Guard) -> bool:
        """Whether the settings of the documented run decide a condition against running."""
        value = self.scan.decided(guard.test, self.case.environment)
        return value is not UNDECIDED and bool(value) != guard.wanted
