"""The runs of a sweep: one process each, one seed of every variant after the other.

What happened is what the run folders say, so a sweep goes on after any interruption, and an
executor of another machine that sees the same files can do its part.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from niblick.cli.jobs import TrainingJob, device_flags, last_words, start_training
from niblick.errors import TrainingError
from niblick.files import locked, read_json, write_atomically
from niblick.scoring.sweep import (
    BASELINE,
    Trial,
    Trials,
    Values,
    curve_values,
    final_values,
    is_behind,
)

if TYPE_CHECKING:
    from niblick.recipe import Recipe

_TICK = 0.1  # seconds between two looks at a run
_STOPPED = "stopped.json"
End = Literal["done", "stopped", "time is up", "failed"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When runs start and end: see the options of `niblick sweep`. `deadline` is in `time.time`."""

    packed: bool = True
    stops: bool = True
    stop_from: float = 0.75
    deadline: float | None = None
    lock: str | None = None
    device: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether the time for the whole sweep is up."""
        return self.deadline is not None and time.time() >= self.deadline


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: its variant and seed, and those of the whole sweep; plain values, so that any
    executor can carry it.
    """

    folder: str  # of the whole sweep
    variant: str
    seed: int
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    parameters: int
    rules: Rules
    plugins: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.folder) / self.variant / f"seed-{self.seed}"

    @property
    def recipe(self) -> Path:
        """The variant's recipe."""
        return self.path.parent / "recipe.toml"


def run_sweep(
    recipes: Mapping[str, Recipe], folder: Path, seeds: int, rules: Rules, pool: Executor | None
) -> tuple[Trials, dict[str, str], str]:
    """Run what is not finished; what all runs found, a note on each variant that did not run all
    its seeds, and the first failure's words, "" where there was none.

    Raises `TrainingError` where the baseline fails, or the folder holds runs of other recipes.
    """
    work = _make_jobs(recipes, folder, seeds, rules)
    failed: dict[str, str] = {}
    for batch in work:  # one seed of all variants
        for job, (end, words) in _run_batch([j for j in batch if j.variant not in failed], pool):
            if end == "failed":
                failed[job.variant] = words
            if end == "failed" and job.variant == BASELINE:
                raise TrainingError(words)
        if rules.is_over:
            break
    trials = {name: [_read(batch[i]) for batch in work] for i, name in enumerate(recipes)}
    notes = {
        name: _note(name, runs, trials, failed.get(name))
        for name, runs in trials.items()
        if any(run.bpb is None for run in runs)
    }
    return trials, notes, next(iter(failed.values()), "")


def _make_jobs(
    recipes: Mapping[str, Recipe], folder: Path, seeds: int, rules: Rules
) -> list[list[Job]]:
    """Write the recipes; the runs of every variant, seed by seed."""
    from niblick.plan import make_plan
    from niblick.registry import loaded_plugins

    for name, recipe in recipes.items():
        _keep_recipe(recipe, folder / name)
    first = next(iter(recipes.values())).seed
    numbers = tuple(range(first, first + seeds))
    return [
        [
            Job(
                folder=str(folder),
                variant=name,
                seed=seed,
                variants=tuple(recipes),
                seeds=numbers,
                parameters=make_plan(recipe.model).parameter_count,
                rules=rules,
                plugins=loaded_plugins(),
            )
            for name, recipe in recipes.items()
        ]
        for seed in numbers
    ]


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    from niblick.recipe import load_recipe, recipe_to_toml

    path = folder / "recipe.toml"
    if path.is_file() and load_recipe(path) != recipe:
        raise TrainingError(
            f"{str(folder)!r} holds runs of another recipe; choose another --out or remove it"
        )
    write_atomically(path, (recipe_to_toml(recipe).encode(),))


def _run_batch(jobs: Sequence[Job], pool: Executor | None) -> Iterator[tuple[Job, tuple[End, str]]]:
    """Each job and how it ended, in order; here or side by side on `pool`."""
    if pool is None:
        yield from ((job, run_job(job)) for job in jobs)
        return
    futures = [pool.submit(run_job, job) for job in jobs]
    try:
        yield from zip(jobs, (future.result() for future in futures), strict=True)
    finally:
        for future in futures:
            future.cancel()


def run_job(job: Job) -> tuple[End, str]:
    """Train one run in a process of its own, resuming it if it was begun; how it ended, and its
    last words where it failed. Its output goes to log.txt in its folder.
    """
    if _read(job).bpb is not None:
        return "done", ""
    if job.rules.stops and _is_behind(job):
        return "stopped", ""
    job.path.mkdir(parents=True, exist_ok=True)
    with _turn(job) as free:
        if not free:
            return "time is up", ""
        (job.path / _STOPPED).unlink(missing_ok=True)
        if _read(job).bpb is not None:  # by a process that a killed sweep had left behind
            return "done", ""
        print(f"{job.variant}, seed {job.seed}: {job.path}", file=sys.stderr, flush=True)
        return _train(job)


@contextmanager
def _turn(job: Job) -> Iterator[bool]:
    """Wait for the sweep's lock, in its queue, and for whoever still trains in the run's folder;
    False where the time is up then.
    """
    shared = Path(job.rules.lock) if job.rules.lock else None
    with locked(shared) if shared else nullcontext():
        with locked(job.path / ".lock"):
            pass
        yield not job.rules.is_over


def _train(job: Job) -> tuple[End, str]:
    options = (() if job.rules.packed else ("--no-pack",)) + device_flags(job.rules.device)
    run = TrainingJob(str(job.recipe), str(job.path), job.seed, job.plugins, options)
    with start_training(run) as process:
        end = _watch(job, process)
    if process.returncode and end == "done":
        return "failed", last_words(job.path, process.returncode)
    return end, ""


def _watch(job: Job, process: subprocess.Popen[bytes]) -> End:
    """Wait for the run's end, or end it where its time is up or it is behind."""
    seen = 0  # bytes of the metrics
    while True:
        try:
            process.wait(_TICK)
            return "done"
        except subprocess.TimeoutExpired:
            pass
        seen, validated = _validated(job.path, seen)
        behind = validated and job.rules.stops and _is_behind(job)
        if behind or job.rules.is_over:
            process.terminate()
            process.wait()
            return "stopped" if behind else "time is up"


def _validated(folder: Path, seen: int) -> tuple[int, bool]:
    """How long the run's metrics are now, and whether a validation is in what is new of them."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(seen)
            whole = file.read().rpartition(b"\n")[0]
    except OSError:
        return seen, False
    return seen + len(whole), b'"validation_bpb"' in whole


def _is_behind(job: Job) -> bool:
    """Whether the variant is behind by finished runs, or this run by its newest validation."""
    trials = _others(job)
    if is_behind(final_values(trials), job.variant):
        return True
    run = next(run for run in trials[job.variant] if run.seed == job.seed)
    number = max(run.curve, default=0)
    share = number * _every(job)
    if not number or not job.rules.stop_from <= share < 1 or job.rules.stop_from == 1:
        return False
    values = _of_seed(curve_values(trials, number), job)
    if not is_behind(values, job.variant):
        return False
    document = json.dumps({"share": share, "bpb": run.curve[number]}) + "\n"
    write_atomically(job.path / _STOPPED, (document.encode(),))
    return True


def _of_seed(values: Values, job: Job) -> Values:
    """A variant's seeds up to this one: a run is judged with those before it."""
    own = {seed: bpb for seed, bpb in values[job.variant].items() if seed <= job.seed}
    return {**values, job.variant: own}


def _others(job: Job) -> Trials:
    """All runs of the sweep, as far as they have come."""
    return {
        name: [_read(replace(job, variant=name, seed=seed)) for seed in job.seeds]
        for name in job.variants
    }


def _every(job: Job) -> float:
    from niblick.recipe import load_recipe

    return load_recipe(job.recipe).training.validation.every


def _read(job: Job) -> Trial:
    """What the run's folder says of it."""
    rows = _rows(job.path)
    last = rows[-1] if rows else {}
    curve = [row["validation_bpb"] for row in rows if "validation_bpb" in row]
    trial = Trial(
        seed=job.seed,
        bpb=None,
        parameters=job.parameters,
        tokens=last.get("tokens", 0),
        seconds=last.get("seconds", 0.0),
        curve=dict(enumerate(curve, 1)),
    )
    card = job.path / "card.json"
    if job.rules.packed and card.is_file():
        found = read_json(card)
        return replace(
            trial,
            bpb=found["packed_bpb"],
            valid=found["valid"],
            artifact_bytes=found["artifact_bytes"],
            tokens=found["train_tokens"],
            seconds=found["train_seconds"],
        )
    if not job.rules.packed and (score := _float_score(job.path)) is not None:
        return replace(trial, bpb=score["bpb"], valid=score["valid"])
    if (job.path / _STOPPED).is_file():
        return replace(trial, stopped=read_json(job.path / _STOPPED)["share"])
    return trial


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the run's metrics."""
    path = folder / "metrics.jsonl"
    lines = path.read_text("utf-8", "replace").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def _float_score(folder: Path) -> dict[str, Any] | None:
    for path in sorted((folder / "scores").glob("validation-*.json")):
        score = read_json(path)
        if score["artifact_sha256"] is None:
            return score
    return None


def _note(name: str, runs: Sequence[Trial], trials: Trials, failed: str | None) -> str:
    if failed is not None:
        return "failed"
    stopped = next((run for run in runs if run.stopped is not None), None)
    if stopped is not None:
        return f"behind: stopped at {stopped.stopped:.0%} of seed {stopped.seed}"
    if is_behind(final_values(trials), name):
        return "behind: stopped after some seeds"
    return "not finished"
