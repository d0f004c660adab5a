"""What is read of a command line without typer is what typer reads."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.cli import commands, generate, plainly
from niblick.cli.plainly import read_plainly
from niblick.errors import NiblickError

OPTIONS = [*plainly._VALUES, *plainly._SWITCHES]
WORDS = st.one_of(
    st.sampled_from([*OPTIONS, "-h", "--help", "--", "-", "pocket", "", "=", "--temperature=0"]),
    st.sampled_from(
        ["0", "3", "-1", "0.5", "1e3", ".5", "5.", "1_0", "٣", " 1", "nan", "a\nb", "é"]
    ),
    st.tuples(st.sampled_from(OPTIONS), st.sampled_from(["", "1", "0.25", "-2", "x=y"])).map(
        "=".join
    ),
)


def given_to_the_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What typer hands to `generate`; None where it stops before."""
    seen: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            generate, "generate", lambda model, **rest: seen.append({"model": model, **rest})
        )
        try:
            commands.run_command(arguments)
        except NiblickError:
            return None
    return seen[0] if seen else None


def test_every_option_of_generate_is_known_and_takes_what_typer_takes() -> None:
    command: Any = typer.main.get_command(commands.app)
    with command.make_context("niblick", ["generate", "pocket"]) as context:
        found = command.get_command(context, "generate")
        options = {each.opts[0] for each in found.params if each.param_type_name == "option"}
    assert options - {"--help"} == set(OPTIONS)


@settings(max_examples=120, deadline=None)
@given(st.lists(WORDS, max_size=6))
def test_what_is_read_without_typer_is_what_typer_reads(words: list[str]) -> None:
    arguments = ["generate", *words]
    plain = read_plainly(arguments)
    if plain is not None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            full = given_to_the_command(arguments, monkeypatch)
        assert full is not None and full.items() >= plain.items()
        assert all(type(full[name]) is type(value) for name, value in plain.items())
        left = {name: value for name, value in full.items() if name not in plain}
        assert left == {name: value for name, value in DEFAULTS.items() if name not in plain}


with pytest.MonkeyPatch.context() as _patch:
    DEFAULTS = given_to_the_command(["generate", "pocket"], _patch)


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "pocket", "--prompt", "The river", "--max-tokens", "1", "--temperature", "0"],
        ["generate", "pocket", "--stop=a", "--stop", "b", "--json", "--top-p", "0.5"],
    ],
)
def test_usual_words_are_read_without_typer(words: list[str]) -> None:
    assert read_plainly(words) is not None


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "pocket"],
        ["generate"],
        ["generate", "pocket", "--help"],
        ["generate", "pocket", "--prompt", "-"],
        ["generate", "pocket", "--max-tokens", "1e3"],
        ["generate", "pocket", "--seed", "1", "--seed", "2"],
        ["generate", "pocket", "river"],
        ["generate", "pocket", "--promp", "x"],
    ],
)
def test_all_else_is_left_to_typer(words: list[str]) -> None:
    assert read_plainly(words) is None
