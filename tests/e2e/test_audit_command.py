"""`niblick audit` from the command line: exit codes, formats, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from niblick.cli import main

CLEAN = """
import torch
import torch.nn.functional as F
from torch import nn


class Hyperparameters:
    vocab_size = 64
    model_dim = 16
    num_layers = 1


class Net(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.embed = nn.Embedding(args.vocab_size, args.model_dim)
        self.head = nn.Linear(args.model_dim, args.vocab_size)

    def forward(self, x, y):
        return F.cross_entropy(self.head(self.embed(x)).flatten(0, 1), y.flatten())


def eval_val(args, model, val_tokens):
    with torch.no_grad():
        return model(val_tokens[None, :-1], val_tokens[None, 1:]).item()


def main():
    args = Hyperparameters()
    model = Net(args)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    train_tokens = torch.load("fineweb_train_000.bin")
    model(train_tokens[None, :-1], train_tokens[None, 1:]).backward()
    opt.step()
    val_tokens = torch.load("fineweb_val_000.bin")
    print("val_loss", eval_val(args, model, val_tokens))


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, program in (
        ("clean", CLEAN),
        ("broken", "import os\nx = int('False')\n"),
        ("empty", "x = 1\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train_gpt.py").write_text(program)
    return tmp_path


def audit(*arguments: object) -> int:
    """The exit code of `niblick audit arguments...`."""
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, arguments)])
    return int(str(ended.value.code))


def test_a_clean_script_ends_with_zero_and_reads_like_a_review(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(folders / "clean", "--static") == 0
    shown = capsys.readouterr().out
    assert "Compliance: LOOKS CLEAN" in shown
    assert "Verdict: clean_neural" in shown


def test_what_cannot_be_decided_ends_with_three(folders: Path) -> None:
    assert audit(folders / "empty", "--static") == 3


def test_many_paths_give_one_json_list_and_files_in_every_format(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: folders / f"out.{name}" for name in ("sarif", "markdown", "html")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    assert audit(folders / "clean", folders / "empty", "--static", "--json", *options) == 3
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert [row["verdict"] for row in data] == ["clean_neural", "hold_unclear"]
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
    assert "| path | verdict |" in files["markdown"].read_text()
    assert files["html"].read_text().startswith("<!doctype html>")


def test_several_paths_end_with_a_summary(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit(folders / "clean", folders / "empty", "--static")
    assert capsys.readouterr().out.count("hold_unclear") >= 2


@pytest.mark.parametrize("arguments", [["nowhere"], ["--static", "--trust", "."], ["--no-such-option", "."]])
def test_bad_usage_ends_with_two_and_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_a_script_that_fails_to_import_by_its_own_fault_ends_with_one(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from niblick.audit.sandbox import detect

    if not detect().contained:
        pytest.skip(f"no isolation on this machine: {detect().detail}")
    assert audit(folders / "broken", "--json") == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "import_fail"
    assert row["smoke"]["own_fault"] is True
