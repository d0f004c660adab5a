"""`niblick audit` from the command line: exit codes, formats, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from niblick.audit.types import Report
from niblick.cli import main
from niblick.cli.audit import exit_code

CLEAN = """
import math
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
    token_bytes = torch.ones(args.vocab_size)
    with torch.no_grad():
        loss = model(val_tokens[None, :-1], val_tokens[None, 1:]).item()
    tokens, size = val_tokens[1:].numel(), token_bytes[val_tokens[1:]].sum()
    return loss / math.log(2.0) * (tokens / size)


def main():
    args = Hyperparameters()
    model = Net(args)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    train_tokens = torch.load("fineweb_train_000.bin")
    model(train_tokens[None, :-1], train_tokens[None, 1:]).backward()
    opt.step()
    val_tokens = torch.load("fineweb_val_000.bin")
    print("val_bpb", eval_val(args, model, val_tokens))


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, program in (
        ("clean", CLEAN),
        ("broken", "import os\nx = int('False')\n"),
        ("torn", "def main(:\n    pass\n"),
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


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["clean_neural", "clean_ttt_score_first"], 0),
        (["clean_neural", "flag_slot", "hold_unclear"], 1),
        (["import_fail"], 1),
        (["hold_unclear", "clean_neural"], 3),
    ],
)
def test_exit_codes_tell_flagged_from_undecided(verdicts: list[str], code: int) -> None:
    reports = [
        Report(path="p", verdict=verdict, recommendation="r", findings=(), smoke=None, record={})
        for verdict in verdicts
    ]
    assert exit_code(reports) == code


def test_many_paths_give_one_json_list_and_files_in_every_format(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: folders / f"out.{name}" for name in ("sarif", "markdown", "html")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    assert audit(folders / "clean", folders / "torn", "--static", "--json", *options) == 1
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert [row["verdict"] for row in data] == ["clean_neural", "import_fail"]
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
    assert "| path | verdict |" in files["markdown"].read_text()
    assert files["html"].read_text().startswith("<!doctype html>")


def test_several_paths_end_with_a_summary(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(folders / "clean", folders / "torn", "--static")
    assert capsys.readouterr().out.count("import_fail") >= 2


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["--static", "--trust", "."], ["--no-such-option", "."]]
)
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
    assert audit(folders / "broken", "--json", "--trust") == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "import_fail"
    assert row["smoke"]["own_fault"] is True
