"""The command line, called from inside of a test."""

from __future__ import annotations

import pytest

from niblick.cli import main


def run(*arguments: object) -> int:
    """Exit code of `niblick ARGUMENTS`."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)
