"""Trackers of other projects, told what metrics.jsonl records: `niblick train --track NAME`.

A tracker is one class, registered under its name, in the package or in a plugin. What is sent
leaves the machine only where the user has set the tool up for that: all three write to disk.
A tracker that fails during a run is given up with a message, and the run goes on.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from niblick.errors import NiblickError
from niblick.extras import missing
from niblick.files import write_atomically
from niblick.limits import cut
from niblick.recipe import Recipe
from niblick.registry import Registry
from niblick.runtime import wandb_mode

Values = dict[str, float]
PROJECT = "niblick"  # under which trackers file the runs
FIGURES = ("packed_bpb", "float_bpb", "artifact_bytes", "train_seconds", "parameters")
_GROUPS = {
    "loss": "train/loss",
    "bpb": "train/bpb",
    "multiplier": "train/multiplier",
    "rounding": "train/rounding",
    "validation_loss": "validation/loss",
    "validation_bpb": "validation/bpb",
    "grad_norm": "optimizer/grad_norm",
    "seconds": "budget/seconds",
    "tokens": "budget/tokens",
}


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is made for; `resumed` where the run was begun before."""

    folder: Path
    recipe: Recipe
    resumed: bool = False

    @property
    def name(self) -> str:
        """The run directory's name; a seed's with its parent's."""
        path = self.folder.resolve()
        return f"{path.parent.name}/{path.name}" if path.name.startswith("seed-") else path.name


class Tracker(Protocol):
    """Takes values by name ("train/loss"), and at the end the figures of the card."""

    package: str  # what it needs installed

    def __init__(self, run: TrackedRun) -> None: ...

    def log(self, step: int, values: Values) -> None:
        """What was measured at a step."""
        ...

    def finish(self, figures: Values) -> None:
        """The run is over; no figures where it was stopped."""
        ...


TRACKERS: Registry[type[Tracker]] = Registry("tracker")


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Event files in RUN/tensorboard; `tensorboard --logdir runs` shows all runs."""

    package = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._writer: Any = None

    def _open(self, step: int) -> Any:
        """Opened at the first row: what an earlier part of the run wrote beyond it is dropped."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self._run.folder / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=step, flush_secs=10)
        return self._writer

    def log(self, step: int, values: Values) -> None:
        """See `Tracker.log`."""
        writer = self._open(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def finish(self, figures: Values) -> None:
        """See `Tracker.finish`."""
        if self._writer is None:
            return
        for name, value in figures.items():
            self._writer.add_scalar(f"card/{name}", value, 0)
        self._writer.close()


@TRACKERS.register("wandb")
class WeightsAndBiases:
    """Files in RUN/wandb, which `wandb sync` sends; WANDB_MODE=online sends them at once."""

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=run.name,
            id=_kept_id(run),
            resume="allow",
            dir=str(run.folder),
            mode=wandb_mode(),
            config=run.recipe.model_dump(mode="json"),
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, save_code=False
            ),
        )

    def log(self, step: int, values: Values) -> None:
        """See `Tracker.log`."""
        self._run.log(values, step=step)

    def finish(self, figures: Values) -> None:
        """See `Tracker.finish`."""
        self._run.summary.update(figures)
        self._run.finish(exit_code=0 if figures else 1)


def _kept_id(run: TrackedRun) -> str:
    """The id of the run, the same when it is resumed."""
    path = run.folder / "wandb" / "id"
    if run.resumed and path.is_file():
        return path.read_text("utf-8").strip()[:64]
    made = uuid.uuid4().hex[:12]
    write_atomically(path, (made.encode(),))
    return made


@TRACKERS.register("trackio")
class Trackio:
    """A database of trackio's own on this machine; `trackio show --project niblick` shows it."""

    package = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            name=run.name,
            resume="allow" if run.resumed else "never",
            config=run.recipe.model_dump(mode="json"),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, values: Values) -> None:
        """See `Tracker.log`."""
        self._run.log(values, step=step)

    def finish(self, figures: Values) -> None:
        """See `Tracker.finish`."""
        if figures:
            self._run.log({f"card/{name}": value for name, value in figures.items()})
        self._run.finish()


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once; `NiblickError` for one that is unknown or whose package is missing."""
    for name in names:
        package = TRACKERS[name].package
        if find_spec(package) is None:
            raise NiblickError(missing(f"--track {name}", package, name))
    return tuple(dict.fromkeys(names))


class Trackers:
    """All trackers of a run as one."""

    def __init__(self, names: Sequence[str], run: TrackedRun, say: Callable[[str], None]) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        self._figures: Values = {}
        for name in check_trackers(names):
            try:
                with redirect_stdout(sys.stderr):
                    self._open[name] = TRACKERS[name](run)
            except Exception as error:  # noqa: BLE001  # whatever another project's code raises
                self.close()
                raise NiblickError(f"--track {name} cannot start: {cut(error)}") from None

    def log(self, row: dict[str, Any]) -> None:
        """Tell all of them one row of metrics.jsonl."""
        values = {
            _GROUPS.get(
                key, f"optimizer/{key}" if key.startswith("lr_") else f"machine/{key}"
            ): float(value)
            for key, value in row.items()
            if key != "step" and value is not None
        }
        self._each(lambda tracker: tracker.log(row["step"], values))

    def take_card(self, card: dict[str, Any]) -> None:
        """Keep the figures of the finished run, which `close` hands on."""
        self._figures = {name: float(card[name]) for name in FIGURES}

    def close(self) -> None:
        """End all of them."""
        self._each(lambda tracker: tracker.finish(self._figures))
        self._open.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                with redirect_stdout(sys.stderr):
                    call(tracker)
            except Exception as error:  # noqa: BLE001  # whatever another project's code raises
                del self._open[name]
                self._say(
                    f"warning: --track {name} failed and is given up ({cut(error)}); metrics.jsonl"
                    " has everything"
                )


@contextmanager
def tracked(
    names: Sequence[str], run: TrackedRun, say: Callable[[str], None]
) -> Iterator[Trackers]:
    """The trackers of a run, ended with the block however it ends."""
    trackers = Trackers(names, run, say)
    try:
        yield trackers
    finally:
        trackers.close()
