"""What the command line imports before it knows what is asked, and what it says without a
command.
"""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from niblick import __version__
from niblick.cli import COMMANDS, main
from niblick.cli.imports import importing

HEAVY = ("torch", "numpy", "rich", "constriction", "sentencepiece", "matplotlib")


def imported(arguments: list[str], names: tuple[str, ...]) -> str:
    """The exit code of a command, and which of the modules it has imported."""
    script = f"""
import sys
from niblick.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    print(end.code, [name for name in {names!r} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["plan", "pocket"]])
def test_help_and_plans_import_nothing_heavy(arguments: list[str]) -> None:
    assert imported(arguments, HEAVY) == "0 []"


def test_the_first_token_comes_without_what_it_does_not_need() -> None:
    arguments = ["generate", "pocket", "--prompt", "The river", "--max-tokens", "1"]
    others = ("pydantic", "typer", "google.protobuf", "safetensors", "subprocess", "torch")
    assert imported(arguments, others) == "0 []"


def test_the_version_and_the_commands_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--version"], [__version__]), (["-h"], list(COMMANDS))):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out = capsys.readouterr().out
        assert end.value.code == 0 and all(word in out for word in words)


@pytest.mark.parametrize("arguments", [["nope"], ["--nope"], ["plan", "--nope"], ["plan"]])
def test_misuse_is_one_line_and_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2 and not captured.out and len(captured.err.splitlines()) == 1


def test_garbage_is_collected_again_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
