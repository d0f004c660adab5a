"""Runs untrusted Python in a child process behind walls, with limits, and brings back one bounded
report.

`run` is the entry, `detect` says what this machine offers. The auditor's own process never loads
anything of a submission.
"""

from niblick.audit.sandbox.child import Bundle, Job, Outcome, run, stop_all
from niblick.audit.sandbox.isolation import Isolation, Limits, detect

__all__ = ["Bundle", "Isolation", "Job", "Limits", "Outcome", "detect", "run", "stop_all"]
