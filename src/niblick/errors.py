"""Errors a user can cause or cure.

Every error that reaches the command line is a `NiblickError`: one line that names the offending
value and what is accepted, and the exit code the command ends with. Anything else that escapes is a
bug of this project.
"""

from __future__ import annotations


class NiblickError(Exception):
    """Base of all expected errors; the command line ends with `exit_code` (2: bad input)."""

    exit_code: int = 2


class NiblickWarning(RuntimeWarning):
    """What goes on, but worse than it could; one line that says how to cure it."""


class RecipeError(NiblickError):
    """A recipe key, value or combination that cannot be used."""


class DataError(NiblickError):
    """A corpus, tokenizer or shard that is missing, damaged, or does not fit the rest."""


class ArtifactError(NiblickError):
    """An artifact or checkpoint file that is truncated, altered, hostile or foreign."""


class CapacityError(NiblickError):
    """A byte, time or memory limit that the work would exceed."""

    exit_code = 1


class ScoreError(NiblickError):
    """A score that is refused because it would not be valid or comparable."""

    exit_code = 1


class AuditError(NiblickError):
    """A submission that cannot be read at all, or a review that cannot be done as asked."""


class TrainingError(NiblickError):
    """A training run that cannot start, continue or be resumed."""


class StoppedError(TrainingError):
    """A run that a signal ended; the command line exits with 128 + the signal's number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
