"""`niblick plan` and `niblick recipes`: complete JSON, readable tables, one-line errors, no
torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from niblick.cli import main
from niblick.recipe import list_recipes

KEYS = (
    "parameters",
    "virtual_layers",
    "weight_blocks",
    "flops_per_token",
    "decode_state_bytes",
    "artifact_bytes_bound",
    "artifact_bytes_estimate",
)
PROGRAM = """
import contextlib, sys
from niblick.cli import main
for arguments in (["--help"], ["recipes"], ["plan", "token-shift"], ["plan", "sidecar", "--json"]):
    with contextlib.suppress(SystemExit):
        main(arguments)
    print(*(name for name in ("torch", "sentencepiece") if name in sys.modules),
        file=sys.stderr)
"""


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        captured = capsys.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return call


def test_help_recipes_and_plan_never_import_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Commands" in done.stdout and "26,999,322" in done.stdout
    assert done.stderr.split("\n") == [""] * 5


def test_plan_json_holds_every_total_and_a_row_per_virtual_layer(run: Callable[..., Done]) -> None:
    done = run("plan", "depth-recurrent", "--json")
    document = json.loads(done.stdout)
    assert all(isinstance(document[key], int) for key in KEYS)
    assert (document["parameters"], document["virtual_layers"], document["weight_blocks"]) == (
        24_455_688,
        22,
        6,
    )
    assert len(document["layers"]) == 22
    assert (
        sum(row["decode_state_bytes"] for row in document["layers"])
        == document["decode_state_bytes"]
    )
    assert 0 < document["artifact_bytes_estimate"] <= document["artifact_bytes_bound"]


def test_set_changes_the_plan(run: Callable[..., Done]) -> None:
    wider, plain = (
        json.loads(run("plan", "token-shift", *more, "--json").stdout)
        for more in (["--set", "model.context=2048", "--set", "model.tied=false"], [])
    )
    assert wider["parameters"] == plain["parameters"] + 1024 * 512
    assert wider["decode_state_bytes"] > plain["decode_state_bytes"]


def test_the_table_has_a_row_per_virtual_layer_and_the_totals(run: Callable[..., Done]) -> None:
    lines = run("plan", "token-shift").stdout.splitlines()
    assert sum("window:128" in line for line in lines) == 2
    assert sum("token-shift" in line and line[0].isdigit() for line in lines) == 8
    assert any("26,999,322" in line for line in lines)


def test_one_member_of_an_ensemble_is_what_it_would_be_alone(run: Callable[..., Done]) -> None:
    alone = json.loads(run("plan", "pocket-ensemble", "--set", "model.members=1", "--json").stdout)
    lines = run("plan", "pocket-ensemble").stdout.splitlines()
    member = next(line for line in lines if "one member" in line)
    for key in ("parameters", "flops_per_token", "decode_state_bytes"):
        assert f"{alone[key]:,}" in member


def test_recipes_lists_every_shipped_recipe(run: Callable[..., Done]) -> None:
    rows = json.loads(run("recipes", "--json").stdout)
    assert [row["name"] for row in rows] == list_recipes()
    assert all(name in run("recipes").stdout for name in list_recipes())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "nothing"], "no recipe 'nothing'"),
        (["plan", "token-shift", "--set", "model.dimm=3"], "unknown key 'model.dimm'"),
        (["plan", "depth-recurrent", "--set", 'model.stack.0.layers=["mamba"]'], "mamba"),
        (["plan"], "RECIPE"),
        (["plan", "token-shift", "--bogus"], "--bogus"),
        (["bogus"], "bogus"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Callable[..., Done], arguments: list[str], words: str
) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
