"""Data flow of a training script: what is scored, from which state, in which order, under the
documented run.

`run` interprets the program over shadow values (see `boxes`) and returns a `Trace`; no code of the
program is executed and no library of its is imported.
"""

from __future__ import annotations

import ast
import sys

from niblick.audit.flow.machine import Machine
from niblick.audit.flow.objects import Trace
from niblick.audit.flow.signals import BudgetSignal

MOST_STEPS = 1_000_000
"""Steps of work for following a program under one command: a node is one, and so are 8,192 elements
of an array.
"""


def run(
    tree: ast.Module,
    *,
    file: str,
    environment: dict[str, str],
    arguments: list[str] | None = None,
    modules: dict[str, tuple[str, ast.Module]] | None = None,
    native: dict[str, frozenset[int]] | None = None,
    budget: int = MOST_STEPS,
) -> Trace:
    """The trace of the program in `tree`, with `modules` (name -> file and tree) beside it, under
    `environment`, within `budget` steps of work.
    """
    for stubborn in (False, True):
        machine = Machine(dict(environment), modules or {}, budget)
        machine.arguments, machine.stubborn, machine.native = (
            list(arguments or []),
            stubborn,
            native or {},
        )
        _follow(machine, tree, file)
        if machine.trace.scores or not machine.raised:
            break
    return machine.trace


def import_failure(
    tree: ast.Module, *, file: str, environment: dict[str, str], budget: int = 20_000
) -> tuple[int, str] | None:
    """(line, what) of an exception that importing the program cannot avoid, with the variables its
    loader sets alone.
    """
    machine = Machine(dict(environment), {}, budget)
    _follow(machine, tree, file, "imported")
    return machine.trace.failures[0] if machine.trace.failures else None


def _follow(machine: Machine, tree: ast.Module, file: str, name: str = "__main__") -> None:
    """Runs the program on a machine; a `stubborn` one takes no exception of a function to its
    caller's handlers.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        machine.run_module(tree, name, file, {})
        machine.left_over()
    except BudgetSignal:
        machine.trace.complete = False
        machine.note("limit: the steps of work ran out")
    except RecursionError:
        machine.trace.complete = False
        machine.note("limit: the program nests too deeply")
    finally:
        sys.setrecursionlimit(limit)
