"""What goes wrong in a run is one clear error, and earlier checkpoints survive it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from niblick.data.dataset import Dataset
from niblick.errors import DataError, TrainingError
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
