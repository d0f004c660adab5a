"""Measures training speed on the CPU; `python benchmarks/training.py [RECIPE ...] [--json]`.

For each recipe, in one run: tokens per second, share of the measured matrix rate (3 x the plan's forward operations),
where the time goes and peak memory, for this package and for the plain implementation of benchmarks/plain.py at its
best thread count. Every variant runs in a process of its own. Full-size recipes are measured at `--tokens` per step.
On a machine that is busy with other work, `--cpu-time` measures one thread by the processor time it used.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from niblick.data.pipeline import Pipeline
from niblick.data.shards import write_shard
from niblick.model import LanguageModel
from niblick.objective import training_loss
from niblick.optim import Layout, Optimizer, make_averager
from niblick.plan import make_plan
from niblick.recipe import Recipe, load_recipe
from niblick.runtime import choose_precision, keep_freed_memory
from niblick.training.compile import CompiledLoss
from niblick.training.weights import Weights
from plain import PlainModel, optimizers

RECIPES = ("pocket", "token-shift-small", "sidecar-small", "depth-recurrent-small", "token-shift", "sidecar",
           "depth-recurrent")
Step = Callable[["Laps"], None]
CPU_TIME = "--cpu-time" in sys.argv


def now() -> float:
    return time.process_time() if CPU_TIME else time.perf_counter()


class Laps:
    """Seconds by phase, one entry per step."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self._since = now()

    def start(self) -> None:
        self._since = now()

    def lap(self, phase: str) -> None:
        at = now()
        self.phases.setdefault(phase, []).append(at - self._since)
        self._since = at


def matrix_rate(dtype: torch.dtype, seconds: float = 1.5) -> float:
    """Operations per second of a 2048^3 product."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = now()
        torch.mm(a, b)
        best = min(best, now() - began)
    return 2 * 2048**3 / best


def batches(recipe: Recipe, folder: str, tokens: int) -> Pipeline:
    ids = np.random.default_rng(0).integers(2, recipe.model.vocab_size, 400_000)
    ids[::300] = recipe.model.bos_id
    write_shard(Path(folder) / "shard.bin", ids)
    length = recipe.training.sequence_length
    return Pipeline([Path(folder) / "shard.bin"], sequence_length=length, batch_sequences=tokens // length, seed=0)


def ours(recipe: Recipe, data: Pipeline) -> Step:
    keep_freed_memory()
    dtype = torch.bfloat16 if choose_precision("auto", "cpu") == "bf16" else torch.float32
    model, training = LanguageModel(recipe.model, seed=0), recipe.training
    layout = Layout(model.plan.parameters)
    weights = Weights(model, layout, dtype=dtype, specs={})
    optimizer = Optimizer(layout, weights.master, muon=training.muon, adam=training.adam, dtype=dtype)
    average = make_averager(training.averaging, weights.master)
    loss_of = CompiledLoss(training_loss, model, "auto", "cpu")
    optimizer.use(loss_of.kernels)

    def step(laps: Laps) -> None:
        inputs, targets = (torch.from_numpy(array) for array in data.next())
        laps.lap("data")
        weights.refresh()
        laps.lap("rest")
        loss, _ = loss_of(inputs, targets)
        laps.lap("forward")
        loss.backward()
        laps.lap("backward")
        weights.collect(optimizer.gradients, add=False)
        optimizer.clip(training.clip)
        optimizer.step(0.01, 0.95)
        laps.lap("optimizer")
        if average:
            average.update(weights.master, step=1, remaining=1.0, last=False)
        laps.lap("rest")

    return step


def plain(recipe: Recipe, data: Pipeline) -> Step:
    model = PlainModel(recipe.model)
    both = optimizers(model)
    average = [p.detach().clone() for p in model.parameters()]
    low = choose_precision("auto", "cpu") == "bf16"

    def step(laps: Laps) -> None:
        inputs, targets = (torch.from_numpy(array) for array in data.next())
        laps.lap("data")
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model(inputs, targets)
        laps.lap("forward")
        loss.backward()
        laps.lap("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip or float("inf"))
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        laps.lap("optimizer")
        with torch.no_grad():
            for kept, parameter in zip(average, model.parameters(), strict=True):
                kept.lerp_(parameter, 0.003)
        laps.lap("rest")

    return step


def measure(name: str, variant: str, tokens: int, seconds: float, threads: int) -> dict[str, Any]:
    """One variant in this process."""
    torch.set_num_threads(threads)
    recipe = load_recipe(name)
    tokens = min(tokens, recipe.training.batch_tokens)
    tokens = max(1, tokens // recipe.training.sequence_length) * recipe.training.sequence_length
    with tempfile.TemporaryDirectory() as folder:
        data = batches(recipe, folder, tokens)
        step = {"ours": ours, "plain": plain}[variant](recipe, data)
        for _ in range(2):
            step(Laps())
        laps, times, until = Laps(), [], time.perf_counter() + seconds
        while time.perf_counter() < until or len(times) < 3:
            began = now()
            laps.start()
            step(laps)
            times.append(now() - began)
        data.close()
    best = median(times)
    phases = {phase: sum(laps.phases[phase]) / sum(times) for phase in laps.phases}
    rates = {kind: matrix_rate(dtype) for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    operations = 3 * make_plan(recipe.model).flops_per_token * tokens / best
    return {
        "recipe": name, "variant": variant, "threads": threads, "tokens_per_step": tokens,
        "tokens_per_second": tokens / best, "utilisation": {k: operations / rate for k, rate in rates.items()},
        "gflops": operations / 1e9, "matrix_gflops": {k: rate / 1e9 for k, rate in rates.items()}, "share": phases,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", *arguments, *(["--cpu-time"] if CPU_TIME else [])]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def show(row: dict[str, Any], ratio: float | None) -> None:
    share = " ".join(f"{phase} {100 * part:.0f}%" for phase, part in row["share"].items())
    used = " ".join(f"{100 * part:.0f}% of {kind}" for kind, part in row["utilisation"].items())
    against = f" | {ratio:.2f}x plain" if ratio else ""
    print(
        f"{row['recipe']:<22} {row['variant']:<6} {row['threads']} threads {row['tokens_per_second']:>9,.0f} tok/s | "
        f"{row['gflops']:.0f} GFLOP/s, {used} | {share} | {row['peak_mb']:.0f} MB{against}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=None)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time of each variant")
    parser.add_argument("--tokens", type=int, default=4096, help="most tokens per step")
    parser.add_argument("--threads", type=int, nargs="*", default=None, help="thread counts to try; all and half")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, processor time instead of the clock")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, variant, tokens, seconds, threads = options.one
        print(json.dumps(measure(name, variant, int(tokens), float(seconds), int(threads))))
        return
    most = torch.get_num_threads()
    threads = [1] if CPU_TIME else options.threads or sorted({most, max(1, most // 2)})
    rows = []
    for name in options.recipes or RECIPES:
        settings = (str(options.tokens), str(options.seconds))
        base = max((in_process(name, "plain", *settings, str(t)) for t in threads), key=lambda r: r["tokens_per_second"])
        mine = max((in_process(name, "ours", *settings, str(t)) for t in threads), key=lambda r: r["tokens_per_second"])
        mine["ratio"] = mine["tokens_per_second"] / base["tokens_per_second"]
        rows += [base, mine]
        if not options.json:
            show(base, None)
            show(mine, mine["ratio"])
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
