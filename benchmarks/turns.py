"""Steps of the plain implementation and of this package in turn, each in its own process.

    python benchmarks/turns.py [RECIPE] [--rounds 20] [--threads 1] [--avx2] [--against OTHER/src]

For a machine whose speed changes while it measures: a round is one step of each, one after the
other, so that what others do meets all alike. Shown are the median tokens per second and the median
and quartiles of the rounds' ratios to plain. One thread counts processor time, several the clock.
`--against` adds the package of another tree. A step is one micro-batch of 4,096 tokens and an
update.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

TOKENS = 4096


def serve(recipe: str, variant: str, threads: int) -> None:
    """A step for each line of standard input; its seconds on standard output."""
    import training as t

    t.PARTS = range(1)
    t.torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    loaded = t.load_recipe(recipe)
    with tempfile.TemporaryDirectory() as folder:
        data = t.batches(loaded, folder, TOKENS)
        batch, update = {"ours": t.ours, "plain": t.plain}[variant](loaded, data, 1.0)
        for _ in range(2):
            batch(t.Laps(), True), update(t.Laps())
        for _ in sys.stdin:
            began = clock()
            batch(t.Laps(), True), update(t.Laps())
            print(clock() - began, flush=True)
        data.close()


class Worker:
    """A process that makes steps when it is asked to."""

    def __init__(self, variant: str, source: Path, options: argparse.Namespace) -> None:
        only = {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        }
        held = ["--threads", str(options.threads), *(["--avx2"] if options.avx2 else [])]
        self.process = subprocess.Popen(
            [sys.executable, __file__, options.recipe, "--serve", variant, *held],
            env={**os.environ, **(only if options.avx2 else {}), "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def step(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        return float(self.process.stdout.readline())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe", nargs="?", default="pocket")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--avx2", action="store_true", help="all held to AVX2 and float32")
    parser.add_argument("--against", type=Path, help="the sources of another tree")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.recipe, options.serve, options.threads)
        sys.exit()
    here = Path(__file__).parents[1] / "src"
    workers = {"plain": Worker("plain", here, options), "ours": Worker("ours", here, options)}
    if options.against:
        workers["other"] = Worker("ours", options.against.resolve(), options)
    rounds = [{name: each.step() for name, each in workers.items()} for _ in range(options.rounds)]
    for name, each in workers.items():
        assert each.process.stdin is not None
        each.process.stdin.close()
        ratios = [r["plain"] / r[name] for r in rounds[1:]]
        low, _, high = quantiles(ratios, n=4)
        speed = TOKENS / median(r[name] for r in rounds[1:])
        print(f"{name:6} {speed:7,.0f} tok/s   {median(ratios):.2f} ({low:.2f} .. {high:.2f})")
