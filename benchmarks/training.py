"""Measures training speed on the CPU; `python benchmarks/training.py [RECIPE ...] [--json]`.

For each recipe, in one run: tokens per second, share of the measured matrix rate (3 x the plan's
forward operations; medians of steps and of 2048^3 products, in turn, because a shared machine
changes from second to second), where the time goes (a recorded forward and backward are told apart
in the proportion that they have unrecorded) and peak memory, for this package and for the plain
implementation of benchmarks/plain.py at its best thread count. Every variant runs in a process of
its own. Steps of more than `--tokens` are made of micro-batches, in both; full-size recipes, whose
published steps have 524,288 tokens, are measured at `--tokens-per-step`: their optimizer weighs
more here. `--avx2` holds both to AVX2 and float32, the plain one's Newton-Schulz too, which torch
has in bfloat16 alone: `--torch-muon` leaves it so. On a machine that is busy with other work,
`--cpu-time` measures one thread by the processor time it used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from niblick.data.shards import write_shard
from niblick.model import LanguageModel
from niblick.objective import training_loss
from niblick.optim import Layout, Optimizers, make_averager
from niblick.plan import make_plan
from niblick.recipe import Recipe, load_recipe
from niblick.runtime import choose_precision, keep_freed_memory
from niblick.toolchain import forced_variant
from niblick.training.compile import CompiledLoss
from niblick.training.pipeline import Pipeline
from niblick.training.weights import Weights
from plain import PlainModel, optimizers

RECIPES = (
    "pocket",
    "token-shift-small",
    "sidecar-small",
    "depth-recurrent-small",
    "token-shift",
    "sidecar",
    "depth-recurrent",
)
CYCLE = 2  # micro-batches that are run for one update where a step has more
Variant = tuple[
    Callable[["Laps", bool], None], Callable[["Laps"], None]
]  # a micro-batch (is it the first?), an update
PARTS = range(
    3, 12
)  # micro-batches whose forward and backward are measured apart, after the first few
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
CPU_TIME = "--cpu-time" in sys.argv
AVX2 = "--avx2" in sys.argv
ONLY_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
PRECISION = "fp32" if AVX2 else choose_precision("auto", "cpu")
LOW = PRECISION == "bf16"


def now() -> float:
    return time.process_time() if CPU_TIME else time.perf_counter()


class Laps:
    """Seconds by phase and altogether, one entry per measured call."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self.totals: list[float] = []
        self._since = now()

    def measure(self, call: Callable[[], None]) -> None:
        began = self._since = now()
        call()
        self.totals.append(now() - began)

    def lap(self, phase: str) -> None:
        at = now()
        self.phases.setdefault(phase, []).append(at - self._since)
        self._since = at

    def lap_in(self, one: str, share: float, other: str) -> None:
        """A lap of two phases, of which the first took `share`."""
        self.lap(one)
        whole = self.phases[one].pop()
        self.phases[one].append(share * whole)
        self.phases.setdefault(other, []).append((1 - share) * whole)


class Products:
    """Seconds of 2048^3 products of both precisions, taken in turn with the steps that are
    measured.
    """

    def __init__(self) -> None:
        self._pairs = {
            k: [torch.randn(2048, 2048).to(t) for _ in range(2)]
            for k, t in PRECISIONS.items()
            if LOW or k == "fp32"  # without its instructions, bfloat16 takes ten seconds
        }
        self._seconds: dict[str, list[float]] = {kind: [] for kind in self._pairs}

    def measure(self, seconds: float) -> None:
        """Products of each kind for about so long, after one that brings the operands nearer."""
        for kind, (a, b) in self._pairs.items():
            torch.mm(a, b)
            until = now() + seconds
            while True:
                began = now()
                torch.mm(a, b)
                self._seconds[kind].append(now() - began)
                if now() > until:
                    break

    def rates(self) -> dict[str, float]:
        """Operations per second, by the medians."""
        return {kind: 2 * 2048**3 / median(seconds) for kind, seconds in self._seconds.items()}


def batches(recipe: Recipe, folder: str, tokens: int) -> Pipeline:
    ids = np.random.default_rng(0).integers(2, recipe.model.vocab_size, 400_000)
    ids[::300] = recipe.model.bos_id
    write_shard(Path(folder) / "shard.bin", ids)
    length = recipe.training.sequence_length
    return Pipeline(
        [Path(folder) / "shard.bin"],
        sequence_length=length,
        batch_sequences=tokens // length,
        seed=0,
    )


def ours(recipe: Recipe, data: Pipeline, share: float) -> Variant:
    keep_freed_memory()
    dtype = PRECISIONS[PRECISION]
    model, training = LanguageModel(recipe.model, seed=0), recipe.training
    layout = Layout(model.plan.parameters)
    weights = Weights(model, layout, dtype=dtype, specs={})
    optimizer = Optimizers(layout, weights.master, training, dtype=dtype)
    average = make_averager(training.averaging, weights.master)
    with forced_variant("avx2") if AVX2 else nullcontext():
        loss_of = CompiledLoss(training_loss, model, "auto", "cpu")
    optimizer.use(loss_of.kernels)
    weights.use(loss_of.kernels)

    def apart(laps: Laps) -> None:
        inputs, targets = (torch.from_numpy(array) for array in data.next())
        laps.lap("data")
        loss, _ = loss_of(inputs, targets)
        laps.lap("forward")
        loss.backward()
        weights.collect(optimizer.gradients, add=False)
        laps.lap("backward")

    parts = Laps()
    for _ in range(PARTS.stop):
        parts.measure(partial(apart, parts))
    ahead, back = (median(parts.phases[name][PARTS.start :]) for name in ("forward", "backward"))

    def batch(laps: Laps, first: bool) -> None:
        inputs, targets = (torch.from_numpy(array) for array in data.next())
        laps.lap("data")
        loss_of.backward(inputs, targets, weight=share)
        weights.collect(optimizer.gradients, add=not first)
        laps.lap_in("forward", ahead / (ahead + back), "backward")

    def update(laps: Laps) -> None:
        optimizer.clip(training.clip)
        optimizer.step(0.01, 0.95)
        laps.lap("optimizer")
        if average:
            average.update(weights.master, step=1, remaining=1.0, last=False)
        weights.refresh()
        laps.lap("rest")

    return batch, update


def plain(recipe: Recipe, data: Pipeline, share: float) -> Variant:
    model = PlainModel(recipe.model)
    both = optimizers(model, low=LOW or "--torch-muon" in sys.argv)
    average = [p.detach().clone() for p in model.parameters()]

    def batch(laps: Laps, first: bool) -> None:
        inputs, targets = (torch.from_numpy(array) for array in data.next())
        laps.lap("data")
        with torch.autocast("cpu", torch.bfloat16, enabled=LOW):
            loss = model(inputs, targets)
        laps.lap("forward")
        (loss * share).backward()
        laps.lap("backward")

    def update(laps: Laps) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip or float("inf"))
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        laps.lap("optimizer")
        with torch.no_grad():
            for kept, parameter in zip(average, model.parameters(), strict=True):
                kept.lerp_(parameter, 0.003)
        laps.lap("rest")

    return batch, update


def run(
    variant: Variant, micro: int, seconds: float, products: Products
) -> tuple[float, dict[str, float]]:
    """Seconds of a step of `micro` micro-batches, and its phases' shares.

    Cycles of at most CYCLE micro-batches, an update and the products are run; a step is `micro`
    median micro-batches and a median update.
    """
    batch, update = variant
    batch(Laps(), True), update(Laps())  # to warm up
    batches, updates = Laps(), Laps()
    while sum(batches.totals) + sum(updates.totals) < seconds or len(updates.totals) < 2:
        for i in range(min(micro, CYCLE)):
            batches.measure(partial(batch, batches, i == 0))
        updates.measure(partial(update, updates))
        products.measure(0.1 * updates.totals[-1] + 0.1 * sum(batches.totals[-CYCLE:]))
    parts = [(phase, micro * median(times)) for phase, times in batches.phases.items()]
    parts += [(phase, median(times)) for phase, times in updates.phases.items()]
    step = micro * median(batches.totals) + median(updates.totals)
    return step, {phase: time / step for phase, time in parts}


def measure(
    name: str, variant: str, tokens: int, per_step: int, seconds: float, threads: int
) -> dict[str, Any]:
    """One variant in this process."""
    torch.set_num_threads(threads)
    recipe = load_recipe(name)
    per_step = min(per_step, recipe.training.batch_tokens)
    tokens = (
        max(1, min(tokens, per_step) // recipe.training.sequence_length)
        * recipe.training.sequence_length
    )
    micro, products = max(1, per_step // tokens), Products()
    with tempfile.TemporaryDirectory() as folder:
        data = batches(recipe, folder, tokens)
        best, phases = run(
            {"ours": ours, "plain": plain}[variant](recipe, data, 1 / micro),
            micro,
            seconds,
            products,
        )
        data.close()
    rates = products.rates()
    operations = 3 * make_plan(recipe.model).flops_per_token * tokens * micro / best
    return {
        "recipe": name,
        "variant": variant,
        "threads": threads,
        "tokens_per_step": tokens * micro,
        "micro_batches": micro,
        "tokens_per_second": tokens * micro / best,
        "utilisation": {k: operations / rate for k, rate in rates.items()},
        "gflops": operations / 1e9,
        "matrix_gflops": {k: rate / 1e9 for k, rate in rates.items()},
        "share": phases,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(*arguments: str) -> dict[str, Any]:
    passed = [option for option in ("--cpu-time", "--avx2", "--torch-muon") if option in sys.argv]
    command = [sys.executable, __file__, "--one", *arguments, *passed]
    environment = {**os.environ, **(ONLY_AVX2 if AVX2 else {})}
    found: dict[str, Any] = json.loads(
        subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
    )
    return found


def show(row: dict[str, Any], ratio: float | None) -> None:
    share = " ".join(f"{phase} {100 * part:.0f}%" for phase, part in row["share"].items())
    used = " ".join(f"{100 * part:.0f}% of {kind}" for kind, part in row["utilisation"].items())
    against = f" | {ratio:.2f}x plain" if ratio else ""
    print(
        f"{row['recipe']:<22} {row['variant']:<6} {row['threads']} threads"
        f" {row['tokens_per_step']:>6} a step {row['tokens_per_second']:>9,.0f} tok/s |"
        f" {row['gflops']:.0f} GFLOP/s, {used} | {share} | {row['peak_mb']:.0f} MB{against}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=None)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each variant")
    parser.add_argument("--tokens", type=int, default=4096, help="most tokens per micro-batch")
    parser.add_argument(
        "--tokens-per-step",
        type=int,
        default=32768,
        help="most tokens per step; the recipe's if fewer",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="*",
        default=None,
        help="thread counts to try; all, and half of them where a step is one micro-batch",
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, processor time instead of the clock"
    )
    parser.add_argument(
        "--avx2", action="store_true", help="both held to AVX2 and float32, Muon included"
    )
    parser.add_argument(
        "--torch-muon", action="store_true", help="with --avx2: the plain optimizer as torch has it"
    )
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, variant, tokens, per_step, seconds, threads = options.one
        print(
            json.dumps(
                measure(name, variant, int(tokens), int(per_step), float(seconds), int(threads))
            )
        )
        return
    most = torch.get_num_threads()
    rows = []
    for name in options.recipes or RECIPES:
        few = (
            [most]
            if load_recipe(name).training.batch_tokens > options.tokens
            else sorted({most, max(1, most // 2)})
        )
        threads = [1] if CPU_TIME else options.threads or few
        settings = (str(options.tokens), str(options.tokens_per_step), str(options.seconds))
        base = max(
            (in_process(name, "plain", *settings, str(t)) for t in threads),
            key=lambda r: r["tokens_per_second"],
        )
        mine = max(
            (in_process(name, "ours", *settings, str(t)) for t in threads),
            key=lambda r: r["tokens_per_second"],
        )
        mine["ratio"] = mine["tokens_per_second"] / base["tokens_per_second"]
        rows += [base, mine]
        if not options.json:
            show(base, None)
            show(mine, mine["ratio"])
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
