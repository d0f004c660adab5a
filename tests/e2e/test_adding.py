"""Every example of docs/adding.md works as it stands: its commands are run on its files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "adding.md").read_text("utf-8")
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
FILE = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the recipe and some text."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"The {number}th ship sails at noon. " * 6, "utf-8")
    return tmp_path


def _niblick(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "niblick", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.splitlines()[0])
def test_an_example_of_the_page_runs(section: str, folder: Path) -> None:
    for name, content in FILE.findall(INTRODUCTION + section):
        (folder / name).write_text(content, "utf-8")
    commands = [line for block in COMMANDS.findall(section) for line in block.splitlines()]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "niblick"
        done = _niblick(folder, *arguments)
        assert done.returncode == 0, done.stderr


def test_a_recipe_that_needs_a_plugin_says_which(folder: Path) -> None:
    recipe = 'plugins = ["my_schedule"]\n' + dict(FILE.findall(INTRODUCTION))["tiny.toml"]
    (folder / "tiny.toml").write_text(recipe, "utf-8")
    done = _niblick(folder, "plan", "tiny.toml")
    assert done.returncode == 2
    assert "--plugin my_schedule" in done.stderr and done.stderr.count("\n") == 1
