"""What goes wrong in a run is one clear error, and earlier checkpoints survive it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from niblick.artifact.checkpoint import FINAL_FILE, save_checkpoint
from niblick.data.dataset import Dataset
from niblick.errors import CapacityError, DataError, TrainingError
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.training import Progress, checkpoint, train
from training_runs import digest, run, tiny_dataset, tiny_recipe


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path / "shards")


def _stopped(dataset: Dataset, out: Path) -> list[Path]:
    """A run that got a signal after step 8; its checkpoints (steps 5 and 8)."""

    def report(progress: Progress) -> None:
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    train(tiny_recipe(validation={"every": 0}), dataset, out, world=World(), on_progress=report)
    return checkpoint.list_checkpoints(out / "checkpoints")


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors", "trainer.json"])
def test_a_damaged_checkpoint_is_refused_and_the_earlier_one_named(
    dataset: Dataset, tmp_path: Path, name: str
) -> None:
    kept = _stopped(dataset, tmp_path / "run")
    damaged = kept[-1] / name
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0x55
    damaged.write_bytes(data)
    recipe = tiny_recipe(validation={"every": 0})
    with pytest.raises(TrainingError, match=r"damaged.*step-00000005"):
        run(recipe, dataset, tmp_path / "run", resume=True)
    kept[-1].rename(tmp_path / "set-aside")
    resumed = run(recipe, dataset, tmp_path / "run", resume=True)
    assert digest(resumed) == digest(run(recipe, dataset, tmp_path / "whole"))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")]
)
def test_a_full_disk_is_one_clear_error_and_leaves_the_earlier_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    kept = _stopped(dataset, tmp_path / "run")

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(
            TrainingError, match=r"cannot write checkpoint.*No space left.*step-00000008 is intact"
        ):
            run(tiny_recipe(validation={"every": 0}), dataset, tmp_path / "run", resume=True)
    assert checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints") == kept
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    run(tiny_recipe(validation={"every": 0}), dataset, tmp_path / "run", resume=True)


def test_a_shard_that_vanishes_ends_the_run_with_its_name(dataset: Dataset, tmp_path: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.step == 6:
            for path in dataset.shards("train"):
                path.unlink(missing_ok=True)

    with pytest.raises(DataError, match="tiny_train"):
        train(tiny_recipe(), dataset, tmp_path / "run", world=World(), on_progress=report)
    assert [
        path.name for path in checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    ] == ["step-00000005"]


def test_there_must_be_something_to_resume(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        run(tiny_recipe(), dataset, tmp_path / "none", resume=True)


def test_a_run_is_never_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    _stopped(dataset, tmp_path / "run")
    with pytest.raises(TrainingError, match="--resume"):
        run(tiny_recipe(), dataset, tmp_path / "run")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    whole = run(tiny_recipe(), dataset, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text((tmp_path / "whole" / "recipe.toml").read_text())
    (tmp_path / "run" / "checkpoints" / ".step-00000005.writing").mkdir(parents=True)
    assert digest(run(tiny_recipe(), dataset, tmp_path / "run", resume=True)) == digest(whole)


def test_another_recipe_cannot_continue_a_run(dataset: Dataset, tmp_path: Path) -> None:
    _stopped(dataset, tmp_path / "run")
    with pytest.raises(TrainingError, match="another recipe"):
        run(tiny_recipe(clip=0.5), dataset, tmp_path / "run", resume=True)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    wide = recipe.model_copy(update={"model": recipe.model.model_copy(update={"vocab_size": 300})})
    with pytest.raises(TrainingError, match=r"model.vocab_size = 300"):
        run(wide, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_breaks_ends_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "niblick.training.trainer.training_loss",
        lambda model, x, y, factors: (model.logits(x).sum() * torch.nan,) * 2,
    )
    with pytest.raises(TrainingError, match="the loss became nan at step 1"):
        run(tiny_recipe(), dataset, tmp_path / "run")


def test_no_permission_to_write_is_one_clear_error(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        run(tiny_recipe(), dataset, tmp_path / "file" / "run")


def test_a_disk_that_fills_up_under_the_metrics_loses_nothing(
    dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tiny_recipe(validation={"every": 0})
    out = tmp_path / "run"

    def report(progress: Progress) -> None:
        if progress.step == 6:
            target = str(out.resolve() / "metrics.jsonl")
            (number,) = (
                int(entry.name)
                for entry in Path("/proc/self/fd").iterdir()
                if entry.is_symlink() and os.path.realpath(entry) == target
            )
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, number)
            os.close(full)

    with pytest.raises(
        TrainingError, match=r"metrics.jsonl.*No space left.*step-00000007 is kept.*--resume"
    ):
        train(recipe, dataset, out, world=World(), on_progress=report)
    resumed = run(recipe, dataset, out, resume=True)
    assert digest(resumed) == digest(run(recipe, dataset, tmp_path / "whole"))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_too_little_space_is_said_before_the_first_step(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 0, 70_000))
    with pytest.raises(CapacityError, match=r"70,000 bytes left; .* take about [0-9,]+"):
        run(tiny_recipe(), dataset, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    monkeypatch.undo()
    run(tiny_recipe(), dataset, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_result_says_which_signal_ended_the_run(
    dataset: Dataset, tmp_path: Path, number: int
) -> None:
    def report(progress: Progress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), number)

    recipe, before = tiny_recipe(validation={"every": 0}), signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        found = train(recipe, dataset, tmp_path / "run", world=World(), on_progress=report)
    finally:
        signal.signal(number, before)
    assert (found.interrupted, found.steps) == (number, 3)


def test_what_nohup_ignores_does_not_end_a_run(dataset: Dataset, tmp_path: Path) -> None:
    def report(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    recipe, before = tiny_recipe(validation={"every": 0}), signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = train(recipe, dataset, tmp_path / "run", world=World(), on_progress=report)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (found.interrupted, found.steps) == (0, 12)


def test_a_run_that_has_come_to_its_end_is_not_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(duration="1s", validation={"every": 0})
    first = train(recipe, dataset, tmp_path / "run", world=World(), spent=0.6)
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    save_checkpoint(
        tmp_path / "run" / "checkpoints" / FINAL_FILE,
        tensors=first.tensors, recipe=recipe, tokenizer=dataset.tokenizer, meta={},
    )  # fmt: skip
    again, more = (
        train(recipe, dataset, tmp_path / "run", world=World(), resume=True, reserve=-60.0, spent=s)
        for s in (0.0, 0.6)
    )
    assert (again.steps, again.tokens) == (first.steps, first.tokens)
    assert more.seconds == again.seconds <= first.seconds
    assert digest(more) == digest(again) == digest(first)
    assert set(kept) < set((tmp_path / "run" / "checkpoints").iterdir())


def test_a_run_that_goes_on_with_other_threads_says_so(dataset: Dataset, tmp_path: Path) -> None:
    _stopped(dataset, tmp_path / "run")
    said: list[str] = []
    same, other = (tiny_recipe(validation={"every": 0}, threads=n) for n in (1, 2))

    def resume(recipe: Recipe) -> None:
        def report(progress: Progress) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        arguments = {"world": World(), "resume": True, "on_progress": report, "say": said.append}
        train(recipe, dataset, tmp_path / "run", **arguments)  # type: ignore[arg-type]

    try:
        resume(same)
        assert said == []
        resume(other)
        assert said == [
            "the run began with 1 threads and goes on with 2: its weights may differ in their last"
            " bits"
        ]
        resume(same)
        assert len(said) == 1
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", "5"), ("tokens", -1), ("data", {"a": "b"}), ("layout", 3), ("seconds", 1e300)],
)
def test_a_malformed_state_is_one_line_though_its_hash_fits(
    dataset: Dataset, tmp_path: Path, key: str, value: object
) -> None:
    newest = _stopped(dataset, tmp_path / "run")[-1]
    document = json.loads((newest / "trainer.json").read_text())
    hashes = document.pop("sha256")
    document[key] = value
    hashes["trainer.json"] = checkpoint._digest(document)
    (newest / "trainer.json").write_text(json.dumps({**document, "sha256": hashes}))
    with pytest.raises(TrainingError, match=r"damaged.*step-00000005"):
        run(tiny_recipe(validation={"every": 0}), dataset, tmp_path / "run", resume=True)
