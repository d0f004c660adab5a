"""The terminal: prompts from everywhere, help that fits, completion, and nothing idle accepted."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import pytest

import niblick
from niblick.artifact.load import open_tokenizer
from niblick.cli import COMMANDS, main
from niblick.cli.tables import headline, table_lines
from niblick.errors import NiblickError
from niblick.units import parse_size

PROMPT = "The river"
FEW = ("--max-tokens", "6", "--temperature", "0")


def run(capfdbinary, *arguments):
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    out, err = capfdbinary.readouterr()
    return int(ended.value.code or 0), out.decode(), err.decode()


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Puts bytes where standard input is."""

    def put(data: bytes):
        path = tmp_path / "typed"
        path.write_bytes(data)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(path.open("rb"), encoding="utf-8"))

    return put


def test_a_prompt_is_the_same_from_the_line_a_file_and_standard_input(capfdbinary, tmp_path, typed):
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n", "utf-8")
    wanted = run(capfdbinary, "generate", "pocket", "--prompt", PROMPT, *FEW)[1]
    assert wanted.strip()
    path = tmp_path / "prompt.txt"
    assert run(capfdbinary, "generate", "pocket", "--prompt-file", path, *FEW)[1] == wanted
    for arguments in ((), ("--prompt", "-"), ("--prompt-file", "-")):
        typed(PROMPT.encode() + b"\n")
        assert run(capfdbinary, "generate", "pocket", *arguments, *FEW)[1] == wanted


def test_a_prompt_that_is_no_text_is_one_line(capfdbinary, tmp_path, typed):
    typed(b"\xff\xfe")
    code, _, err = run(capfdbinary, "generate", "pocket", "--prompt", "-")
    assert code == 2
    assert err.endswith("standard input is not UTF-8: byte 0 is 0xFF\n")
    code, _, err = run(capfdbinary, "generate", "pocket", "--prompt-file", tmp_path / "none")
    assert code == 2
    assert "No such file" in err


def test_lines_are_continued_one_after_another(capfdbinary, typed):
    typed(f"{PROMPT}\n\n/temprature 0\n/max-tokens 3\n{PROMPT}\n/quit\nnever\n".encode())
    code, out, err = run(capfdbinary, "generate", "pocket", "--interactive", *FEW)
    one = run(capfdbinary, "generate", "pocket", "--prompt", PROMPT, *FEW)[1]
    six = one.removesuffix("\n")
    two = run(capfdbinary, "generate", "pocket", "--prompt", PROMPT + six, *FEW)[1]
    assert code == 0
    assert out.startswith(one + two)
    assert one.startswith(out.removeprefix(one + two).removesuffix("\n"))  # three of the six tokens
    assert "no command /temprature" in err and "'temperature'" in err


def test_a_line_that_is_no_text_is_refused_and_the_next_is_continued(capfdbinary, typed):
    typed(PROMPT.encode() + b"\ncaf\xe9\n" + PROMPT.encode() + b"\n/quit\n")
    code, out, err = run(capfdbinary, "generate", "pocket", "--interactive", *FEW)
    one = run(capfdbinary, "generate", "pocket", "--prompt", PROMPT, *FEW)[1]
    assert code == 0 and out.startswith(one) and len(out) > len(one)
    assert "Traceback" not in err and "lone surrogate" in err


def test_closed_standard_streams_are_one_line(capfdbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run(capfdbinary, "generate", "pocket", "--prompt", "-", *FEW)
    assert code == 2
    assert err.endswith("\nniblick: standard input is closed: there is no prompt to read\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "pocket", "--temperature", "0", "--top-k", "4"), "--top-k does nothing"),
        (("generate", "pocket", "--temperature", "0", "--seed", "4"), "--seed does nothing"),
        (("generate", "pocket", "--interactive", "--json"), "--interactive"),
        (("generate", "pocket", "--prompt", "a", "--prompt-file", "b"), "not both"),
        (("export", "pocket", "--to", "onnx", "--author", "me"), "--author"),
        (("export", "pocket", "--tokenizer", "bytes"), "--tokenizer"),
        (("eval", "pocket", "--stride", "4"), "--stride"),
        (("train", "pocket", "--tokenizer", "bytes"), "--tokenizer"),
        (("audit", "README.md", "--verbose", "--json"), "--verbose"),
        (("compare", "run", "--across-settings"), "--across-settings"),
        (("ablate", "pocket", "--without", "smear", "--jobs", "2", "--executor", "a:b"), "--jobs"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_by_name(capfdbinary, arguments, said):
    code, out, err = run(capfdbinary, *arguments)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_fits_eighty_columns_and_names_no_type_of_python(capfdbinary, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capfdbinary, name, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert not any(mark in out for mark in ("<str>", "<int", "list[", "{"))


def test_a_command_whose_beginning_was_typed_is_suggested(capfdbinary):
    for typed in ("gen", "generat"):
        code, _, err = run(capfdbinary, typed, "pocket")
        assert code == 2
        assert err.count("\n") == 1 and "Did you mean 'generate'?" in err


def test_recipes_and_techniques_are_listed_in_one_short_line_each(capfdbinary):
    for arguments in (("recipes",), ("techniques",), ("techniques", "pocket")):
        documents = json.loads(run(capfdbinary, *arguments, "--json")[1])
        lines = run(capfdbinary, *arguments)[1].splitlines()
        assert len(lines) == 1 + len(documents)
        assert max(map(len, lines)) <= 80


def test_a_table_breaks_its_column_between_words(monkeypatch):
    monkeypatch.setattr("niblick.cli.tables.columns", lambda: 30)
    lines = table_lines([["a", "one two three four five", "1"]], right={2}, wrap=1)
    assert lines == ["a  one two three four    1", "   five"] or max(map(len, lines)) <= 30
    assert " ".join(" ".join(lines).split()).count("three") == 1
    assert headline("The first; the second clause", 20) == "The first"
    assert headline("words without any end of a clause", 20) == "words without ..."


COMPLETE = {
    "niblick tra": "train",
    "niblick train pock": "pocket",
    "niblick eval pocket --mode st": "streaming",
    "niblick train pocket --set model.di": "model.dim=",
    "niblick data prep": "prepare",
    "niblick generate pocket --inter": "--interactive",
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_offered_what_fits(capfdbinary, monkeypatch, shell):
    monkeypatch.setenv("_NIBLICK_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for line, wanted in COMPLETE.items():
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        assert wanted in run(capfdbinary)[1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_script_it_is_given(tmp_path):
    starter = tmp_path / "niblick"
    starter.write_text(f'#!/bin/sh\nexec {sys.executable} -m niblick "$@"\n', "utf-8")
    starter.chmod(0o755)
    told = (
        "source <(env _NIBLICK_COMPLETE=source_bash niblick); COMP_WORDS=(niblick techn);"
        ' COMP_CWORD=1; _niblick_completion niblick; echo "${COMPREPLY[@]}"'
    )
    found = subprocess.run(
        ["bash", "--norc", "-c", told],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "techniques\n"


def test_a_reader_who_leaves_is_no_failure():
    command = f"{sys.executable} -m niblick recipes | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert not done.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("300000", 300_000), ("300k", 300_000), ("1.5 MB", 1_500_000), ("16MiB", 1 << 24),
     ("1,000_000", 1_000_000), ("2Gi", 2 << 30), ("7B", 7)],
)  # fmt: skip
def test_a_size_may_have_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-5", "1e6", "5q", "1 ki.", "0x10", "nan"])
def test_what_is_no_size_is_refused(capfdbinary, text):
    with pytest.raises(NiblickError, match="no size in bytes"):
        parse_size(text)
    code, _, said = run(capfdbinary, "pack", "nothing", f"--max-bytes={text}")
    assert code == 2
    assert "no size in bytes" in said


def test_a_shipped_model_has_its_card_and_lends_its_tokenizer(capfdbinary):
    code, card, _ = run(capfdbinary, "card", "pocket")
    assert code == 0
    assert card.startswith("# pocket: ")
    own = niblick.load("pocket").tokenizer
    assert open_tokenizer("pocket").sha256 == own.sha256
    with pytest.raises(NiblickError, match="brings has 6,144"):
        niblick.load("pocket", tokenizer="bytes")


def test_pack_keeps_to_the_cap_and_off_a_scored_artifact(tmp_path):
    for wrong in ({"max_bytes": -1}, {"code_bytes": -1}, {"max_bytes": 1.5}):
        with pytest.raises(NiblickError, match="no number of bytes"):
            niblick.pack(tmp_path, tmp_path / "x.nib", **wrong)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(NiblickError, match="give another --out"):
        niblick.pack(tmp_path, tmp_path / "artifact.nib")
