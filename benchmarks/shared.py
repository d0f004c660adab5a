"""What training, packing and decoding keep of their speed beside other work on the same processors;
`python benchmarks/shared.py [train pack decode] [--against OTHER/src] [--json]`.

Each kind of work is a process of its own, started as the command line starts, with nothing in the
environment that says how threads wait or how many there are; between its turns it waits for a line.
In turn, `--pairs` times: this package alone, another copy of it alone (`--against`, the folder its
`niblick` lies in), this package beside `--hogs` busy processes (and with `--both` the other one).
Reported are medians of the ratios within a turn, by the clock and by processor time: above 1 is
faster than what it is compared with. Fair shares of two processors beside one busy process are
two thirds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

WORKS = ("train", "pack", "decode")
UNSET = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_")
NARROWER = ["model.dim=64", "model.vocab_size=1024", "model.bigram.buckets=1024"]
OWN = Path(__file__).resolve().parents[1] / "src"


def train(steps: int) -> Callable[[], None]:
    """`steps` optimizer steps of pocket on random tokens, recorded as in a run."""
    import numpy as np
    import torch

    from niblick.model import LanguageModel
    from niblick.objective import training_loss
    from niblick.optim import Layout, Optimizers
    from niblick.recipe import load_recipe
    from niblick.runtime import choose_precision, keep_freed_memory
    from niblick.training.compile import CompiledLoss
    from niblick.training.weights import Weights

    keep_freed_memory()
    recipe = load_recipe("pocket")
    training, model = recipe.training, LanguageModel(recipe.model, seed=0)
    dtype = torch.bfloat16 if choose_precision("auto", "cpu") == "bf16" else torch.float32
    layout = Layout(model.plan.parameters)
    weights = Weights(model, layout, dtype=dtype, specs={})
    optimizer = Optimizers(layout, weights.master, training, dtype=dtype)
    loss_of = CompiledLoss(training_loss, model, "auto", "cpu")
    optimizer.use(loss_of.kernels)
    weights.use(loss_of.kernels)
    shape = (training.batch_tokens // training.sequence_length, training.sequence_length + 1)
    ids = np.random.default_rng(0).integers(2, recipe.model.vocab_size, shape)
    inputs, targets = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())

    def work() -> None:
        for _ in range(steps):
            loss_of.backward(inputs, targets, weight=1.0)
            weights.collect(optimizer.gradients, add=False)
            optimizer.clip(training.clip)
            optimizer.step(0.01, 0.95)
            weights.refresh()

    for _ in range(3):  # until the step is recorded
        work()
    return work


def pack(sequences: int) -> Callable[[], None]:
    """A narrower pocket's weights as initialised, packed to a cap, calibrated on random tokens."""
    import torch

    from niblick.compression import Calibration
    from niblick.compression.packing import pack as write
    from niblick.model import LanguageModel
    from niblick.recipe import load_recipe

    recipe = load_recipe("pocket", NARROWER)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: t.detach().clone() + 0.02 * torch.randn(t.shape, generator=generator)
        for name, t in LanguageModel(recipe.model, seed=0).named_parameters()
    }
    tokens = torch.randint(2, recipe.model.vocab_size, (sequences, 128), generator=generator)

    def work() -> None:
        calibration = Calibration(list(tokens.split(8)), bytes_per_token=3.0)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "artifact.nib"
            write(tensors, recipe, None, out, max_bytes=60_000, calibration=calibration)

    return work


def decode(tokens: int) -> Callable[[], None]:
    """A prompt of 512 tokens and `tokens` new ones with pocket on the native engine."""
    from niblick.engine import Sampling, open_engine
    from niblick.engine.continuation import continue_tokens
    from niblick.model import LanguageModel
    from niblick.recipe import load_recipe

    model = LanguageModel(load_recipe("pocket").model, seed=0)
    engine = open_engine(
        model.plan, {name: t.detach().numpy() for name, t in model.named_parameters()}
    )
    prompt = [2 + (37 * i) % 4000 for i in range(512)]

    def work() -> None:
        for _ in continue_tokens(engine, prompt, Sampling(temperature=0), max_tokens=tokens):
            pass

    work()
    return work


def serve(work: str, size: int) -> None:
    """Do the work once per line of standard input, and tell how long each took."""
    run = {"train": train, "pack": pack, "decode": decode}[work](size)
    print("ready", flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - began, time.process_time() - used, flush=True)


class Worker:
    """A process that works when it is told to."""

    def __init__(self, source: Path, work: str, size: int) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(UNSET)}
        call = f"import niblick, runpy, sys; sys.argv[0] = {__file__!r};"
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{call} runpy.run_path({__file__!r}, run_name='__main__')",
                f"--serve={work}",
                f"--size={size}",
            ],
            env={**kept, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; what it said is above")
        return line

    def await_ready(self) -> None:
        while self._line() != "ready\n":
            pass

    def run(self) -> tuple[float, float]:
        """Seconds by the clock and of the processors."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        clock, used = self._line().split()
        return float(clock), float(used)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.2)
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def measure(work: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ratios of one kind of work."""
    start = partial(
        Worker, work=work, size=options.size or {"train": 2, "pack": 16}.get(work, 2048)
    )
    ours = start(OWN)
    ours.await_ready()
    other = start(options.against) if options.against else None
    if other:
        other.await_ready()
    rows: list[dict[str, tuple[float, float]]] = []
    for pair in range(options.pairs):
        row = {}
        for name, worker in (("ours", ours), ("other", other))[:: 1 if pair % 2 else -1]:
            if worker:
                row[name] = worker.run()
        if options.hogs:
            with hogs(options.hogs):
                row["ours busy"] = ours.run()
                if other and options.both:
                    row["other busy"] = other.run()
        rows.append(row)
    for worker in (ours, other):
        if worker:
            worker.end()

    def ratio(one: str, two: str, which: int) -> float | None:
        found = [row[one][which] / row[two][which] for row in rows if one in row and two in row]
        return median(found) if found else None

    pairs = [("kept beside", "ours", "ours busy"), ("against", "other", "ours")]
    pairs += [("kept by the other", "other", "other busy")]
    return {
        "work": work,
        "seconds": {name: median(row[name][0] for row in rows) for name in rows[0]},
        "processor_seconds": {name: median(row[name][1] for row in rows) for name in rows[0]},
        **{name: ratio(one, two, 0) for name, one, two in pairs},
        **{f"{name}, processor": ratio(one, two, 1) for name, one, two in pairs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--pairs", type=int, default=10, help="turns of each kind of work")
    parser.add_argument("--hogs", type=int, default=1, help="busy processes beside")
    parser.add_argument("--against", type=Path, help="the src folder of another copy")
    parser.add_argument("--both", action="store_true", help="the other copy beside them too")
    parser.add_argument("--size", type=int, help="steps, calibration sequences or tokens of a turn")
    parser.add_argument("--json", action="store_true", help="one JSON document per kind of work")
    parser.add_argument("--serve", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size)
        return
    for work in options.works or WORKS:
        found = measure(work, options)
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        print(work, "seconds: ", ", ".join(f"{k} {v:.2f}" for k, v in found["seconds"].items()))
        for name, value in found.items():
            if isinstance(value, float):
                print(f"  {name:<28} {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
