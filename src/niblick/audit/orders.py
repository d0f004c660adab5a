"""What running a submission's script needs to know of its folder: variables and packages."""

from __future__ import annotations

import re
from pathlib import Path

from niblick.audit.types import Submission


def folders(submission: Submission) -> tuple[Path, Path]:
    """The submission's folder and the script's own, which may lie below it."""
    assert submission.script is not None
    root, script = submission.root.resolve(), submission.script.resolve()
    base = root if root.is_dir() and script.is_relative_to(root) else script.parent
    return base, script.parent


def documented_environment(submission: Submission) -> dict[str, str]:
    """Variables of the documented run command, those aside that a shell or a reader was meant to
    fill in.
    """
    given = submission.command.environment if submission.command else {}
    return {
        name: value for name, value in given.items() if not re.search(r"[$`<>{}]|\.\.\.", value)
    }


def declared_packages(*places: Path) -> set[str]:
    """Names of the distributions that requirements.txt files in `places` ask for."""
    names: set[str] = set()
    for folder in places:
        listed = folder / "requirements.txt"
        if listed.is_file():
            for line in listed.read_text("utf-8", "replace").splitlines()[:500]:
                match = re.match(r"\s*([A-Za-z0-9][\w.-]*)", line)
                if match:
                    names.add(match.group(1))
    return names
