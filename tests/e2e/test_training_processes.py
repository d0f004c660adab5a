"""Runs in processes of their own: killed without warning and resumed, and shared by two of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from decoded import opened_model
from training_runs import tiny_dataset

DROPOUT = {"token": 0.1, "bigram": 0.3}
PROGRAM = """
import sys
from pathlib import Path
from niblick.runtime import read_world
from niblick.training import train
from training_runs import digest, noisy_recipe, tiny_recipe
folder, out, options = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
from niblick.data.dataset import open_dataset
from niblick.text.tokenizer import load_tokenizer
dataset = open_dataset(folder, load_tokenizer("bytes"))
resume = options.pop("resume", False)
recipe = noisy_recipe() if options.pop("noisy", False) else tiny_recipe(**options)
result = train(recipe, dataset, out, world=read_world(), resume=resume)
print(digest(result))
"""


def _command(
    tmp_path: Path, launcher: list[str], out: Path, options: dict[str, object]
) -> list[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return [
        sys.executable,
        *launcher,
        str(program),
        str(tmp_path / "shards"),
        str(out),
        repr(options),
    ]


def _environment() -> dict[str, str]:
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(entry for entry in (tests, *sys.path) if entry)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _wait(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    return out.strip()


def test_a_run_that_is_killed_again_and_again_ends_in_the_bits_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    tiny_dataset(tmp_path / "shards")
    options: dict[str, object] = {
        "duration": "60 steps",
        "checkpoint_every": "7 steps",
        "dropout": DROPOUT,
    }
    whole = _start(_command(tmp_path, [], tmp_path / "whole", options))
    out, resume = tmp_path / "run", False
    for _ in range(2):
        process = _start(_command(tmp_path, [], out, options | {"resume": resume}))
        _wait_for_checkpoints(process, out / "checkpoints")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resume = (out / "recipe.toml").exists()
    finished = _wait(_start(_command(tmp_path, [], out, options | {"resume": True})))
    assert finished == _wait(whole)


def _wait_for_checkpoints(process: subprocess.Popen[str], folder: Path) -> None:
    """Until a checkpoint has appeared that was not there, or the run is over."""
    before = {path.name for path in folder.glob("step-*")} if folder.exists() else set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if {path.name for path in folder.glob("step-*")} - before:
            return
        time.sleep(0.01)


def test_two_processes_follow_the_loss_curve_of_one(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "shards")
    options: dict[str, object] = {
        "duration": "10 steps",
        "qat": {"enabled": False},
        "dropout": DROPOUT,
    }
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    one = _start(_command(tmp_path, [], tmp_path / "one", options))
    two = _start(_command(tmp_path, launcher, tmp_path / "two", options))
    _wait(one)
    found = re.findall(r"[0-9a-f]{64}", _wait(two))  # the launcher may run the two lines together
    assert len(found) == 2
    assert found[0] == found[1], "both processes hold the same bits"
    curves = [_curve(tmp_path / name) for name in ("one", "two")]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), atol=2e-4, rtol=0)
    models = [opened_model(tmp_path / name).state_dict() for name in ("one", "two")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(tensor, models[1][name], atol=1e-3, rtol=1e-2)


def test_two_processes_train_under_the_same_errors_of_the_codec(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "shards")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    found = _wait(_start(_command(tmp_path, launcher, tmp_path / "two", {"noisy": True})))
    digests = re.findall(r"[0-9a-f]{64}", found)
    assert len(digests) == 2 and digests[0] == digests[1]


OWN_CLOCKS = """
import sys
from pathlib import Path
from niblick.data.dataset import open_dataset
from niblick.runtime import read_world
from niblick.text.tokenizer import load_tokenizer
from niblick.training import train
from niblick.training.progress import Clock
from training_runs import tiny_recipe
world = read_world()
if not world.is_main:
    own = Clock.seconds
    Clock.seconds = property(lambda clock: 50 * own.fget(clock))
dataset = open_dataset(Path(sys.argv[1]), load_tokenizer("bytes"))
recipe = tiny_recipe(duration="4s", validation={"every": 0.05, "tokens": 512})
found = train(recipe, dataset, Path(sys.argv[2]), world=world, reserve=1.0 + world.rank)
print(f"<{found.steps} {[step for step, _ in found.validations]}>")
"""


def test_two_processes_that_measure_other_times_validate_and_end_together(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "shards")
    program = tmp_path / "own_clocks.py"
    program.write_text(OWN_CLOCKS)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    out = _wait(
        _start(
            [
                sys.executable,
                *launcher,
                str(program),
                str(tmp_path / "shards"),
                str(tmp_path / "run"),
            ]
        )
    )
    first, second = re.findall(r"<(\d+ .*?)>", out)
    assert first == second and first.count(",") > 4


SHARED = """
import torch, torch.distributed as dist
from niblick.optim import Launched, Layout, Optimizers
from niblick.training.overlap import Sink
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.recipe.schema import TrainingRecipe
dist.init_process_group("gloo")
rank = dist.get_rank()
layout = Layout(make_plan(load_recipe("token-shift-small").model).parameters)
start = torch.randn(layout.total, generator=torch.Generator().manual_seed(1)) * 0.05
training = TrainingRecipe(clip=0)
def stepped(slopes, processes, overlapped=False):
    weights = start.clone()
    found = Optimizers(layout, weights, training, dtype=torch.float32, processes=processes)
    if overlapped:
        sink = Sink(layout, found.gradients, found.buckets(), processes)
    for step in range(2):
        if overlapped:
            sink.open(add=False, last=True)
            for n in reversed(range(len(layout.slots))):  # as they come where nothing is compiled
                sink.take(n, layout.slots[n].view(slopes))
            sink.close()
            assert sink.early == (len(found.buckets()) if step else 0)
        else:
            found.gradients.copy_(slopes)
            found.reduce()
        found.clip(0.0)
        found.step(1.0, 0.9)
    found.complete()
    return torch.cat([weights, found.tensors()["matrix.momentum"]])
for size in (2, 3, 4):
    group = dist.new_group(list(range(size)))
    generator = torch.Generator().manual_seed(2)
    slopes = torch.randint(-8, 9, (size, layout.total), generator=generator) * (size / 16)
    if rank < size:
        for kind in (torch.float32, torch.bfloat16):
            alone = stepped(slopes.mean(0), None)
            for overlapped in (False, True):
                together = stepped(slopes[rank], Launched(rank, size, kind, group), overlapped)
                assert torch.equal(together, alone), (size, kind, overlapped)
print("equal")
dist.destroy_process_group()
"""


def test_two_to_four_processes_of_gloo_take_the_step_of_one_to_the_bit(tmp_path: Path) -> None:
    program = tmp_path / "shared.py"
    program.write_text(SHARED)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=4", "--standalone"]
    assert _wait(_start([sys.executable, *launcher, str(program)])).count("equal") == 4


def _curve(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("validation_bpb")) for row in rows]
