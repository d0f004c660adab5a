"""What isolation this machine really offers, found by trying it on a program of our own."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass

BUBBLEWRAP = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """`kind` is "bubblewrap", "namespaces" or "bare"; `program` bubblewrap's path; `detail` why not
    better.
    """

    kind: str
    program: str = ""
    detail: str = ""

    @property
    def contained(self) -> bool:
        """Whether untrusted code may run without the user's word for it."""
        return self.kind != "bare"


@functools.cache
def detect() -> Isolation:
    """The strongest walls that work here: bubblewrap where installed, else namespaces of our own,
    else none.
    """
    from niblick.audit.sandbox.child import attempt

    reasons = []
    if sys.platform != "linux":
        return Isolation(kind="bare", detail=f"{sys.platform} has no namespaces")
    for program in BUBBLEWRAP:
        if os.access(program, os.X_OK):
            candidate = Isolation(kind="bubblewrap", program=program)
            error = attempt(candidate)
            if error is None:
                return candidate
            reasons.append(f"bubblewrap: {error}")
            break
    error = attempt(Isolation(kind="namespaces"))
    if error is None:
        return Isolation(kind="namespaces", detail="; ".join(reasons))
    return Isolation(kind="bare", detail="; ".join([*reasons, f"namespaces: {error}"]))
