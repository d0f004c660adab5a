"""Runs untrusted Python in a child process behind walls, with limits, and brings back one bounded
result.

`run` is the entry, `isolation` says what this machine offers. The auditor's own process never loads
anything of a submission.
"""

from niblick.audit.sandbox.child import Job, Outcome, run
from niblick.audit.sandbox.isolation import Isolation, detect
from niblick.audit.sandbox.limits import Limits

__all__ = ["Isolation", "Job", "Limits", "Outcome", "detect", "run"]
