"""What a GPU shows: `python benchmarks/gpu.py --part a|b|c|d [--seconds 220] [--out FILE]`.

Each part takes under four minutes on a machine without network, compilation included, and writes
its JSON after every figure, so that an interrupted run keeps what it has; it stops at `--seconds`.

a: the tests marked `cuda`. b: tokens per second, MFU and memory of the full-size recipes, and of
the same models as plain torch under torch.compile with SDPA and the best batch that fits. c: 60 s
each of pocket (packed with `rd`) and token-shift (`int-zlib`), scored. d: the time of sliding and
streaming evaluation of token-shift, and what the challenge's validation split would take on eight
such devices. A part that the time does not last for is done recipe by recipe (`--recipes`): what is
compiled once is kept by torch on the same machine.

MFU is the plan's training operations per token (three times forward, matrix products only) times
tokens per second over 989e12; the step is the synchronised median, optimizer included. The text is
wiki-vital in the shipped tokenizer of 1,024 tokens, repeated to the batch, and in pocket's own;
`--prepare FOLDER` writes both where the corpus is installed, `--data FOLDER` reads them where it is
not. `--rehearse` runs every part at small width, where there is no device on a pretended one
(`tests/pretended_card.py`).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import resolve_dataset
from niblick.evaluation import EvaluationOptions
from niblick.evaluation.evaluate import evaluate_target
from niblick.files import write_atomically
from niblick.model import LanguageModel
from niblick.plan import make_plan
from niblick.recipe import Recipe, load_recipe
from niblick.report.probe import Steps
from niblick.report.run import train_and_score
from niblick.runtime import World, cache_folder, describe_environment
from niblick.scoring.data import load_target
from niblick.training import Progress
from niblick.training.memory import choose_rows, device_memory
from plain import PlainModel, optimizers

PEAK = 989e12  # operations per second of an H100 or H200 in bf16, dense
RECIPES = ("token-shift", "sidecar", "depth-recurrent")
VALIDATION_TOKENS = 62_021_632  # of the challenge's split, by its published logs
STEPS, WARM_UP = 50, 5
CORPUS = ["data.corpus=wiki-vital", "data.tokenizer=fineweb-1024"]
REHEARSED = [
    "model.dim=64",
    "model.context=64",
    "model.vocab_size=1024",
    "model.attention.heads=4",
    "model.attention.kv_heads=2",
    "training.sequence_length=64",
    "training.batch_tokens=512",
    "training.validation.every=0",
]
SMALL: dict[str, list[str]] = {  # what else shrinks
    "pocket": ["model.bigram.buckets=256", 'model.stack=[{layers=["token-shift", "full"]}]',
               "model.value_embedding.layers=[1]"],
    "token-shift": [],
    "sidecar": ["model.attention.rope.train_length=32"],
    "depth-recurrent": [],
}  # fmt: skip


class OutOfTimeError(BaseException):
    """The time is up; what was measured is kept."""


class Book:
    """The JSON document of a part, written whole after each figure."""

    def __init__(self, path: Path, **head: Any) -> None:
        self.path, self.values = path, {**head, "results": {}, "finished": False}
        self.write()

    def note(self, key: str, value: Any) -> None:
        self.values["results"][key] = value
        print(f"{key}: {json.dumps(value)}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        write_atomically(self.path, (json.dumps(self.values, indent=1).encode() + b"\n",))


@contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], float]]:
    """Raise `OutOfTimeError` in the block after so many seconds; gives what is left."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTimeError

    end = perf_counter() + seconds
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again, where a finalizer swallows it
    try:
        yield lambda: end - perf_counter()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def recipe_of(name: str, options: argparse.Namespace) -> Recipe:
    changes = [*CORPUS] if name != "pocket" or options.rehearse else []
    if options.rehearse:
        changes += [*REHEARSED, *SMALL[name]]
    return load_recipe(name, changes)


def dataset_of(recipe: Recipe, options: argparse.Namespace) -> Dataset:
    if options.data:
        return open_dataset(prepared(recipe, options.data))
    return resolve_dataset(recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder())


def prepared(recipe: Recipe, folder: Path) -> Path:
    """The shards of a recipe's vocabulary below what `--prepare` wrote."""
    found = sorted((folder / str(recipe.model.vocab_size)).rglob("*.bin"))
    if not found:
        sys.exit(f"no text for {recipe.name} below {folder}; write it with --prepare {folder}")
    return found[0].parent


def batch_of(recipe: Recipe, dataset: Dataset) -> Tensor:
    """Rows (R, T + 1) of one step, the text repeated where it is shorter."""
    training = recipe.training
    shape = training.batch_tokens // training.sequence_length, training.sequence_length + 1
    tokens = np.asarray(dataset.tokens("train")).astype(np.int64)
    return torch.from_numpy(np.resize(tokens, shape))


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_memory(device: str) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def measured(
    step: Callable[[], object], device: str, left: Callable[[], float], share: float
) -> list[float]:
    """Seconds of up to STEPS steps after the warm-up, as long as `share` seconds last."""
    until = left() - share
    found: list[float] = []
    for number in range(WARM_UP + STEPS):
        synchronise(device)
        began = perf_counter()
        step()
        synchronise(device)
        if number >= min(WARM_UP, 1 if not found else WARM_UP):
            found.append(perf_counter() - began)
        if left() < until and found:
            break
    return found


class PlainSteps:
    """The plain model under torch.compile, its optimizers, and the best batch that fits."""

    def __init__(self, recipe: Recipe, device: str, tokens: Tensor, backend: str) -> None:
        torch.manual_seed(0)
        self.model = PlainModel(recipe.model).to(device)
        self.device, self.clip = device, recipe.training.clip
        self.inputs, self.targets = (
            part.contiguous().to(device) for part in (tokens[:, :-1], tokens[:, 1:])
        )
        self.optimizers = optimizers(self.model, low=True)
        self.call = torch.compile(self.model, dynamic=False, backend=backend)
        memory = device_memory(device)
        confirm = None if device == "cpu" else lambda rows: self.probe(self.call, rows)
        self.choice = choose_rows(
            len(tokens), lambda rows: self.probe(self.model, rows), memory, confirm=confirm
        )

    def back(self, call: Any, part: slice, share: float) -> None:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            loss = call(self.inputs[part], self.targets[part])
        (loss * share).backward()

    def probe(self, call: Any, rows: int) -> None:
        try:
            self.back(call, slice(0, rows), 1.0)
        finally:
            self.model.zero_grad(set_to_none=True)

    def step(self) -> None:
        rows = self.choice.rows
        for start in range(0, len(self.inputs), rows):
            self.back(self.call, slice(start, start + rows), rows / len(self.inputs))
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def figures(recipe: Recipe, seconds: list[float], rows: int, device: str) -> dict[str, Any]:
    tokens, step = recipe.training.batch_tokens, median(seconds)
    rate, flops = tokens / step, 3 * make_plan(recipe.model).flops_per_token
    return {
        "step_ms": round(1000 * step, 2),
        "tokens_per_second": round(rate),
        "mfu": round(rate * flops / PEAK, 4),
        "micro_batch_tokens": rows * recipe.training.sequence_length,
        "peak_bytes": peak_memory(device),
        "steps": len(seconds),
    }


def kernels(step: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """What one step's time goes to: the ten kernels that take the most of it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.startswith("cuda") and torch.version.cuda is not None  # no pretended card
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as found:
        step()
        synchronise(device)
    key, there = ("self_device_time_total" if on_cuda else "self_cpu_time_total"), []
    for row in found.key_averages():  # the rows of operators repeat what their kernels take
        if not on_cuda or (row.device_type == DeviceType.CUDA and not row.is_user_annotation):
            there.append(row)
    rows = sorted(there, key=lambda row: -getattr(row, key))[:10]
    total = sum(getattr(row, key) for row in there) or 1
    return [
        {"kernel": row.key[:80], "share": round(getattr(row, key) / total, 4), "calls": row.count}
        for row in rows
    ]


def part_a(book: Book, left: Callable[[], float], options: argparse.Namespace) -> None:
    """The tests marked `cuda`."""
    tests = Path(__file__).parents[1] / "tests" / "cuda"
    command = [sys.executable, "-m", "pytest", "-vv", "-m", "cuda", str(tests)]
    run = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    assert run.stdout is not None
    try:
        for line in run.stdout:
            name, word, *_ = [*line.split(), "", ""]
            if "::" in name and word in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
                book.note(name.rpartition("/")[2], word.lower())
            elif line.startswith("=") and ("passed" in line or "failed" in line):
                book.note("summary", line.strip())
    finally:
        run.kill()


def part_b(book: Book, left: Callable[[], float], options: argparse.Namespace) -> None:
    """Speed of the full-size recipes."""
    device, backend = options.device, "aot_eager" if options.rehearse else "inductor"
    for number, name in enumerate(options.recipes):
        share = left() / (len(options.recipes) - number) / 4
        recipe = recipe_of(name, options)
        tokens = batch_of(recipe, dataset_of(recipe, options))
        torch._dynamo.reset()
        reset_peak(device)
        steps = Steps(recipe, device, tokens)
        choice = steps.fit()
        reset_peak(device)
        ours = figures(recipe, measured(steps.step, device, left, share), choice.rows, device)
        forms = {"compiled": steps.loss.compiled, "replayed": steps.loss.replayed}
        book.note(f"{name} niblick", ours | forms)
        book.note(f"{name} kernels", kernels(steps.step, device))
        del steps
        torch._dynamo.reset()
        reset_peak(device)
        plain = PlainSteps(recipe, device, tokens, backend)
        reset_peak(device)
        seconds = measured(plain.step, device, left, share)
        theirs = figures(recipe, seconds, plain.choice.rows, device)
        book.note(f"{name} plain", theirs)
        ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
        book.note(f"{name} ratio", round(ratio, 3))
        del plain


def reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def part_c(book: Book, left: Callable[[], float], options: argparse.Namespace) -> None:
    """Runs of 60 s, packed and scored."""
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            recipe, codec = recipe_of(name, options), "rd" if name == "pocket" else "int-zlib"
            duration = "2 steps" if options.rehearse else "60s"
            training = recipe.training.model_copy(update={"duration": duration})
            artifact = recipe.artifact.model_copy(update={"codec": codec})
            update: dict[str, Any] = {"training": training, "artifact": artifact}
            if options.data:
                shards = str(prepared(recipe, options.data))
                update["data"] = recipe.data.model_copy(update={"corpus": shards})
            began = perf_counter()
            outcome = train_and_score(
                recipe.model_copy(update=update),
                Path(folder) / name,
                world=World(device=options.device),
                on_progress=partial(note_progress, book, name),
                say=lambda text: print(text, file=sys.stderr),
            )
            result, packed = outcome.result, outcome.packed
            book.note(
                name,
                {
                    "train_seconds": round(result.seconds, 1),
                    "train_tokens": result.tokens,
                    "steps": result.steps,
                    "compiled": result.compiled,
                    "precision": result.precision,
                    "float_bpb": outcome.floating.bpb,
                    "packed_bpb": outcome.scored.bpb,
                    "bytes": packed.size if packed else None,
                    "all_seconds": round(perf_counter() - began, 1),
                },
            )


def note_progress(book: Book, name: str, at: Progress) -> None:
    """Every fifth of a run, so that what training showed is kept whatever becomes of the rest."""
    key = f"{name} at {int(5 * at.fraction) / 5:.0%}"
    if key not in book.values["results"]:
        figures = ("step", "tokens", "seconds", "loss", "bpb", "tokens_per_second")
        book.note(key, {figure: getattr(at, figure) for figure in figures})


def part_d(book: Book, left: Callable[[], float], options: argparse.Namespace) -> None:
    """Seconds of an evaluation, and of the challenge's on eight devices."""
    recipe, device = recipe_of("token-shift", options), options.device
    dataset = dataset_of(recipe, options)
    model = LanguageModel(recipe.model, seed=0).to(device).requires_grad_(False)
    sizes = {"vocab_size": recipe.model.vocab_size, "bos_id": recipe.model.bos_id}
    whole = load_target(dataset, "validation", **sizes)
    count = 600 if options.rehearse else 200_000
    target = replace(
        whole,
        tokens=whole.tokens[:count],
        counts=whole.counts[: count - 1],
        documents=[(a, min(b, count)) for a, b in whole.documents if a < count],
    )
    for mode, precision in (
        ("sliding", "bf16"), ("sliding", "fp32"), ("streaming", "bf16"), ("chunked", "bf16"),
    ):  # fmt: skip
        chosen = EvaluationOptions(
            mode=mode, stride=64, context=recipe.model.context, batch_tokens=131072,
            precision=precision,
        )  # fmt: skip
        for turn in ("first", "again"):
            synchronise(device)
            began = perf_counter()
            score = evaluate_target(model, target, options=chosen, world=World(device=device))
            synchronise(device)
            seconds = perf_counter() - began
            rate = len(target.tokens) / seconds
            book.note(
                f"{mode} {precision} {turn}",
                {
                    "seconds": round(seconds, 2),
                    "tokens_per_second": round(rate),
                    "challenge_on_8_seconds": round(VALIDATION_TOKENS / rate / 8, 1),
                    "nats_per_token": score.nats_per_token,
                },
            )


DEFAULTS = {"b": RECIPES, "c": ("pocket", "token-shift")}
PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d}


def pretended() -> AbstractContextManager[object]:
    """A device for the rehearsal."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from pretended_card import pretended as card

    return card()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--device", default=None)
    parser.add_argument("--recipes", nargs="+", choices=("pocket", *RECIPES))
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.prepare:
        for recipe in (load_recipe("pocket"), load_recipe("token-shift", CORPUS)):
            vocabulary = recipe.model.vocab_size
            cache = options.prepare / str(vocabulary)
            resolve_dataset(recipe.data, vocab_size=vocabulary, cache=cache)
        print(options.prepare)
        return
    if options.part is None:
        parser.error("give --part a, b, c or d, or --prepare FOLDER")
    there = torch.cuda.is_available()
    if not there and not options.rehearse:
        sys.exit("there is no CUDA device here; --rehearse runs this without, at small width")
    options.device = options.device or "cuda:0"
    options.recipes = options.recipes or DEFAULTS.get(options.part, ())
    out = options.out or Path(f"gpu-{options.part}.json")
    book = Book(
        out,
        part=options.part,
        rehearsed=options.rehearse,
        device=options.device,
        environment=describe_environment(),
    )
    began = perf_counter()
    try:
        card = nullcontext() if there or options.part == "a" else pretended()
        with card, time_limit(options.seconds) as left:
            PARTS[options.part](book, left, options)
        book.values["finished"] = True
    except OutOfTimeError:
        print(f"stopped after {options.seconds:.0f} s; {out} keeps the rest", file=sys.stderr)
    finally:
        book.values["seconds"] = round(perf_counter() - began, 1)
        book.write()


if __name__ == "__main__":
    main()
