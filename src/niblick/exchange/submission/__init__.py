"""Submissions: a run written as the folder that reviewers expect, and its score checked without
this package.
"""

from niblick.exchange.submission.folder import Exported, export_submission
from niblick.exchange.submission.verify import Verified, verify_submission

__all__ = ["Exported", "Verified", "export_submission", "verify_submission"]
