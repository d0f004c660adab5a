"""Whether the documented run can reach a function that the engine did not follow itself.

A function counts as reachable when it was interpreted, or when some call of it stands in a
reachable function under no switch that the documented run leaves off.
"""

from __future__ import annotations

import ast

from niblick.audit.evidence import Guard
from niblick.audit.rules.case import Case

_OFF = frozenset({"", "0", "0.0", "false", "False", "none", "None", "no", "off"})


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

    def closed(self, guard: Guard, depth: int = 0) -> bool:
        """Whether a condition is known to be against running: its switch is off, and it had to be
        on (or not).
        """
        test = guard.test
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) and guard.wanted:
            return any(self.closed(Guard(part, True), depth) for part in test.values)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.closed(Guard(test.operand, not guard.wanted), depth)
        if isinstance(test, ast.Call) and len(test.args) == 1:
            return self.closed(Guard(test.args[0], guard.wanted), depth)
        variable = self.scan.variable(test)
        if variable is not None:
            value = self.case.environment.get(variable[0], variable[1])
            return value is not None and (value in _OFF) == guard.wanted
        alias = self.scan.aliases.get(test.id) if isinstance(test, ast.Name) else None
        return (
            alias is not None and depth < 4 and self.closed(Guard(alias, guard.wanted), depth + 1)
        )
