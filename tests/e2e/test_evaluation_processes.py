"""Two processes score as one does, in every mode, and `niblick eval` runs end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.evaluation_worker import scores
from niblick.artifact import save_checkpoint
from niblick.cli import main
from niblick.data.prepare import prepare
from niblick.evaluation import read_score
from niblick.recipe import recipe_from_dict
from niblick.runtime import World
from niblick.text.tokenizer import load_tokenizer
from property.evaluators import VOCAB, make_model
from unit.evaluation_cases import CASES, EXACT

TESTS = Path(__file__).parents[1]


def launch(*arguments):
    """Two processes of torchrun on this machine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *map(str, arguments),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    launch(TESTS / "e2e" / "evaluation_worker.py", folder)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return scores(folder / "alone", World()), found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_sums_of_one(both, name):
    alone, (first, second) = both
    assert first[name] == second[name]
    assert first[name] == pytest.approx(alone[name], rel=1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_where_no_gradient_is_shared_the_sums_are_equal_to_the_bit(both, name):
    alone, (first, _) = both
    assert first[name] == list(alone[name])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint of a small model, and text prepared with its tokenizer."""
    folder = tmp_path_factory.mktemp("eval")
    for split in ("train", "validation"):
        (folder / "text" / split).mkdir(parents=True)
        for i in range(4):
            (folder / "text" / split / f"{i}.txt").write_text(
                f"Some {split} text, number {i}: naïve café, 你好.\n" * 3
            )
    prepare(folder / "text", out=folder / "shards", tokenizer="bytes")
    model = make_model()
    recipe = recipe_from_dict(
        {
            "name": "tiny",
            "model": model.recipe.model_dump(mode="json"),
            "data": {"corpus": str(folder / "shards"), "tokenizer": "bytes"},
            "evaluation": {"mode": "sliding", "stride": 8},
        }
    )
    save_checkpoint(
        folder / "m.safetensors",
        tensors=dict(model.state_dict()),
        recipe=recipe,
        tokenizer=load_tokenizer("bytes"),
        meta={},
    )
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        main(["eval", *map(str, arguments)])
    return done.value.code


def test_eval_scores_the_recipes_data_in_the_recipes_mode_and_writes_the_score(place, capsys):
    assert run(place / "m.safetensors", "--json") == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (
        found["mode"] == "sliding" and found["settings"]["stride"] == 8 and "documents" not in found
    )
    text = sum(len(path.read_bytes()) for path in (place / "text" / "validation").iterdir())
    assert found["bytes"] == text
    written = read_score(next(place.glob("m.validation-sliding-*.score.json")))
    assert written.bpb == found["bpb"] and len(written.documents.nats) == 4


def test_eval_proves_and_adapts_on_request(place, capsys):
    out = place / "ttt.json"
    flags = (
        "--ttt",
        "lora",
        "--ttt-set",
        "chunk_tokens=8",
        "--ttt-set",
        "rank=2",
        "--prove",
        "--out",
        out,
    )
    assert run(place / "m.safetensors", "--data", place / "shards", *flags) == 0
    text = capsys.readouterr().out
    assert (
        "adaptation        method lora" in text
        and f"distributions over {VOCAB} tokens sum to 1" in text
    )
    assert read_score(out).settings["adaptation"]["rank"] == 2


def test_a_leaky_evaluation_says_so_in_its_first_line(place, capsys):
    assert run(place / "m.safetensors", "--mode", "leaky-ttt", "--ttt-set", "epochs=1") == 0
    assert capsys.readouterr().out.startswith(
        "NOT A VALID SCORE: the weights were trained on the very tokens"
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--mode", "best"), 2, "'best' is unknown; accepted: chunked"),
        (("--split", "dev"), 2, "no 'dev' split; it has: train, validation"),
        (("--stride", "99"), 2, "stride 99 is longer"),
        (("--ttt", "slot"), 2, "'slot' is unknown"),
        (("--ttt-set", "lr=1"), 2, "--ttt-set lr=1 needs --ttt"),
        (("--mode", "leaky-ttt", "--prove"), 1, "not causal"),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_a_code(place, capsys, flags, code, message):
    assert run(place / "m.safetensors", *flags) == code
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
