"""How control leaves a block of the interpreted program."""

from __future__ import annotations

from typing import Any


class ReturnSignal(Exception):  # noqa: N818 - control flow, not an error
    """`return value`."""

    def __init__(self, value: Any) -> None:
        self.value = value


class BreakSignal(Exception):  # noqa: N818
    """`break`."""


class ContinueSignal(Exception):  # noqa: N818
    """`continue`."""


class AbortSignal(Exception):  # noqa: N818
    """The program raises an exception here; `final` when it asks to end, `sure` where no unknown
    condition leads to it.
    """

    def __init__(self, final: bool = False, sure: bool = False) -> None:
        self.final, self.sure = final, sure


class BudgetSignal(Exception):  # noqa: N818
    """The engine's own limit of steps or time is reached."""


class NotPlainError(Exception):
    """A value, an operation or a function that may be more than plain."""
