"""Data flow of a training script: what is scored, from which state, in which order, under the documented run.

`run` interprets the program over shadow values (see `boxes`) and returns a `Trace`; no code of the program is
executed and no library of its is imported.
"""

from __future__ import annotations

import ast
import sys

from niblick.audit.flow.machine import Machine, run_deadline
from niblick.audit.flow.objects import Trace
from niblick.audit.flow.signals import BudgetSignal


def run(
    tree: ast.Module, *, file: str, environment: dict[str, str], arguments: list[str] | None = None,
    modules: dict[str, ast.Module] | None = None, seconds: float = 8.0, budget: int = 700_000,
) -> Trace:
    """The trace of the program in `tree` under `environment`, within `seconds` of processor time and `budget` interpreted steps."""
    machine = Machine(dict(environment), modules or {}, run_deadline(seconds), budget)
    machine.arguments = list(arguments or [])
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        machine.run_module(tree, "__main__", file)
    except BudgetSignal:
        machine.trace.complete = False
        machine.note("the engine's budget ran out")
    except RecursionError:
        machine.trace.complete = False
        machine.note("the program nests too deeply")
    finally:
        sys.setrecursionlimit(limit)
    return machine.trace
