"""Decoding speed at batch 1 and small batches; `python benchmarks/decode.py [--threads N] [--peers
PYTHON] [--json]`

`--model PATH` (repeatable) adds artifacts, checkpoints or run directories: what was really packed.
`--check PATH` measures no speed but compares the native engine with the reference model (see
decode_check.py).

For each full-size model: tokens/s and milliseconds per token (greedy choice included) of the engine
behind `generate` at several context positions, of the reference engine, resident memory and state
bytes; then, with `--peers` naming a Python that has transformers, llama-cpp-python and gguf, the
same of a Llama-type model of equal parameter count in Hugging Face transformers and in llama.cpp
(Q8_0 and Q6_K).

Weights of recipes are random, rounded per row to the recipe's bits (`NAME:BITS`: matrices to so
many). Each number is the best of `--repeats` runs of `--tokens` tokens. A position beyond the
context is reached with a full context behind it (`--read-all` reads every token from position 0
instead). Every model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = ("token-shift", "sidecar", "depth-recurrent", "depth-recurrent:6")
PEERS = Path(__file__).with_name("decode_peers.py")


def resident() -> int:
    """Bytes of resident memory of this process, after giving back what is free."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def clock(options: argparse.Namespace) -> Any:
    """Wall time; with `--cpu-time` this process's processor time, which other processes disturb
    less.
    """
    return time.process_time if options.cpu_time else time.perf_counter


def open_plan(name: str) -> tuple[Any, Any, Any]:
    """Recipe, plan and tensors of a file, or of a recipe with random weights."""
    if not Path(name).exists():
        return random_model(*name.split(":"))
    from niblick.artifact import open_file

    opened = open_file(name)
    return opened.recipe, opened.plan, opened.tensors


def random_model(name: str, bits: str | None = None) -> tuple[Any, Any, Any]:
    """A full-size model of random codes of `bits`, or of as many as the recipe names."""
    import numpy as np

    from niblick.artifact import exported_recipe
    from niblick.codecs import QuantizedTensor
    from niblick.plan import Role, make_plan
    from niblick.recipe import load_recipe

    recipe = load_recipe(name)
    plan = make_plan(exported_recipe(recipe).model)
    widths = {
        Role.MATRIX: int(bits or recipe.artifact.matrix_bits),
        Role.EMBEDDING: int(bits or recipe.artifact.embedding_bits),
    }
    draw, tensors = np.random.default_rng(0), {}
    for parameter in plan.exported:
        if parameter.role not in widths:
            value = 1.0 if parameter.init.kind == "normal" else parameter.init.value
            tensors[parameter.name] = np.full(parameter.shape, value, dtype=np.float32)
            continue
        most = (1 << (widths[parameter.role] - 1)) - 1
        normal = draw.standard_normal(parameter.shape) * parameter.shape[-1] ** -0.5
        steps = np.abs(normal).max(axis=1) / most
        tensors[parameter.name] = QuantizedTensor(
            shape=parameter.shape,
            codes=np.rint(normal / steps[:, None]).astype(np.int8),
            row_steps=steps,
        )
    return recipe, plan, tensors


def best_seconds(engine: Any, options: argparse.Namespace, batch: int = 1) -> float:
    """Seconds per step of `batch` slots, choice included: the best of the repeats."""
    from niblick.engine import GREEDY

    found = []
    for _ in range(options.repeats):
        began = clock(options)()
        for _ in range(options.tokens):
            engine.step([engine.choose(slot, GREEDY, 0) for slot in range(batch)])
        found.append((clock(options)() - began) / options.tokens)
    return min(found)


def position_rows(engine: Any, context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed of slot 0 at every asked position."""
    import numpy as np

    ids = np.random.default_rng(0).integers(2, engine.vocab_size, max(options.positions))
    rows = []
    for position in options.positions:
        begin = 0 if options.read_all else max(0, position - context)
        began = clock(options)()
        engine.read(0, ids[begin:position], at=begin)
        reading = (position - begin) / (clock(options)() - began)
        seconds = best_seconds(engine, options)
        rows.append(
            {
                "position": position,
                "ms": seconds * 1e3,
                "tokens_per_second": 1 / seconds,
                "read_per_second": reading,
            }
        )
    return rows


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model; runs in its own process."""
    import torch

    from niblick.engine import NativeEngine, open_engine
    from niblick.evaluation.torch_engine import TorchEngine
    from niblick.model import build_model

    torch.set_num_threads(options.threads)
    before = resident()
    recipe, plan, tensors = open_plan(name)
    slow = None
    if ":" not in name:  # the bits of its weights make no difference to torch
        reference = TorchEngine(build_model(recipe, tensors))
        reference.read(0, [1] * 1000)
        slow = (
            best_seconds(
                reference, argparse.Namespace(repeats=2, tokens=10, cpu_time=options.cpu_time)
            )
            * 1e3
        )
        del reference
    began = clock(options)()
    engine = open_engine(plan, tensors, threads=options.threads)
    laid_out = clock(options)() - began
    if not isinstance(engine, NativeEngine):
        raise SystemExit("the native engine could not be built here: is there a C compiler?")
    del tensors
    found = {
        "model": name,
        "engine": engine.name,
        "parameters": plan.parameter_count,
        "weight_bytes": engine.weight_bytes,
        "bits": sorted(set(engine.bits.values())),
        "state_bytes": engine.state_bytes,
        "plan_state_bytes": plan.decode_state_bytes(),
        "layout_seconds": laid_out,
        "positions": position_rows(engine, plan.model.context, options),
        "resident_bytes": resident() - before,
        "reference_ms": slow,
    }
    return {**found, "batches": _batches(name, options)}


def _batches(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    from niblick.engine import open_engine

    _, plan, tensors = open_plan(name)
    engine = open_engine(plan, tensors, slots=max(options.batches), threads=options.threads)
    for slot in range(engine.slots):
        engine.read(slot, [1] * 1000)
    rows = []
    for batch in options.batches:
        seconds = best_seconds(engine, options, batch)
        rows.append({"batch": batch, "ms": seconds * 1e3, "tokens_per_second": batch / seconds})
    return rows


def run(command: list[str]) -> Any:
    """One child process's JSON; its errors end the benchmark."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_memory(row: dict[str, Any]) -> str:
    """What the weights of a model of ours take."""
    return f", {row['weight_bytes'] / 1e6:.1f} MB" if "weight_bytes" in row else ""


def show(result: dict[str, Any]) -> None:
    """The tables of the documentation."""
    kind = "processor" if result["options"]["cpu_time"] else "wall"
    print(
        f"{result['processor']}, {result['threads']} threads; {kind} milliseconds per token"
        " (tokens/s)\n"
    )
    positions = result["options"]["positions"]
    print(
        "| model | memory | state | "
        + " | ".join(f"at {p:,}" for p in positions)
        + " | reading a prompt |"
    )
    print("|---|---|---|" + "---|" * (len(positions) + 1))
    for row in result["models"] + result["peers"]:
        at = {cell["position"]: cell for cell in row["positions"]}
        cells = [
            f"{at[p]['ms']:.2f} ({at[p]['tokens_per_second']:,.0f})" if p in at else "-"
            for p in positions
        ]
        reading = max(
            (cell["read_per_second"] for cell in row["positions"] if cell["position"] >= 1000),
            default=0,
        )
        print(
            f"| {row['model']}, {row['engine']}{in_memory(row)} | {row['resident_bytes'] / 1e6:.0f}"
            f" MB | {row['state_bytes'] / 1e6:.1f} MB | "
            + " | ".join(cells)
            + f" | {reading:,.0f}/s |"
        )
    print(
        "\n| model | reference engine at 1,000 | "
        + " | ".join(f"batch {b}" for b in result["options"]["batches"])
        + " |"
    )
    print("|---|---|" + "---|" * len(result["options"]["batches"]))
    for row in result["models"]:
        cells = [f"{cell['tokens_per_second']:,.0f}/s" for cell in row["batches"]]
        slow = "-" if row["reference_ms"] is None else f"{row['reference_ms']:.1f} ms"
        print(f"| {row['model']} | {slow} | " + " | ".join(cells) + " |")


def parse() -> argparse.Namespace:
    """Command line."""
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = lambda text: [part for part in text.split(",") if part]
    parser.add_argument(
        "--models", type=names, default=list(MODELS), help="recipes, NAME or NAME:BITS; may be none"
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="PATH", help="a packed or trained model"
    )
    parser.add_argument(
        "--check", action="append", type=Path, metavar="PATH", help="compare with the reference"
    )
    parser.add_argument("--check-tokens", type=int, default=1000)
    parser.add_argument("--text", type=Path, help="of --check: a token shard or a plain text")
    parser.add_argument("--text-tokens", type=int, default=4000)
    parser.add_argument("--positions", type=numbers, default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=None, help="default: all processors")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--read-all", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for busy machines; one thread only"
    )
    parser.add_argument("--peers", help="Python with transformers, llama-cpp-python and gguf")
    parser.add_argument("--peer-positions", type=numbers, default=[100, 1000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every model and peer in turn."""
    options = parse()
    if options.threads is None:
        import os

        options.threads = os.cpu_count() or 1
    if options.cpu_time and options.threads != 1:
        raise SystemExit("--cpu-time is for --threads 1")
    if options.check:
        import decode_check

        for path in options.check:
            found = decode_check.check(path, options)
            print(json.dumps(found)) if options.json else decode_check.show(found)
        return
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    shared = [
        f"--threads={options.threads}",
        f"--tokens={options.tokens}",
        f"--repeats={options.repeats}",
        "--positions=" + ",".join(map(str, options.positions)),
        "--batches=" + ",".join(map(str, options.batches)),
        *(["--read-all"] if options.read_all else []),
        *(["--cpu-time"] if options.cpu_time else []),
    ]
    models = [
        run([sys.executable, __file__, "--one", name, *shared])
        for name in [*options.models, *options.model]
    ]
    peers = []
    if options.peers:
        wanted = {
            "threads": options.threads,
            "tokens": options.tokens,
            "repeats": options.repeats,
            "cpu_time": options.cpu_time,
            "positions": options.peer_positions,
        }
        for peer in (
            "transformers-float32",
            "transformers-bfloat16",
            "llama.cpp-Q8_0",
            "llama.cpp-Q6_K",
        ):
            peers.append(run([options.peers, str(PEERS), peer, json.dumps(wanted)]))
    from niblick.runtime import describe_environment

    result = {
        "processor": describe_environment()["processor"],
        "platform": platform.platform(),
        "threads": options.threads,
        "options": vars(options),
        "models": models,
        "peers": peers,
    }
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
