"""Decoding speed of every build of the engine; `python benchmarks/variants.py [RECIPE]`.

Every variant that this processor runs, compiled by ziglang as in a wheel and by each compiler of
the system, and the system compiler's build for this very processor, in turn: milliseconds of
processor time per token and prompt tokens per second, one thread; every measurement is printed as
it is made, medians and bests at the end. Weights are random.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np

from niblick.engine.native import NativeEngine
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.toolchain import ENGINE, PROCESSOR, processor_features

PROMPT, TOKENS = 256, 20


def builds(folder: Path) -> dict[str, ctypes.CDLL]:
    """Every build by its compiler and variant."""
    compilers: dict[str, tuple[str, ...]] = {}
    if find_spec("ziglang"):
        compilers["ziglang"] = (sys.executable, "-m", "ziglang", "cc")
    compilers |= {name: (path,) for name in ("gcc", "clang") if (path := shutil.which(name))}
    found = {}
    for name, compiler in compilers.items():
        kinds = {v.name: v.options_for(compiler) for v in ENGINE.variants if _runs(v.needs)}
        for kind, options in {**kinds, "native": ("-march=native",)}.items():
            target = folder / f"{name}-{kind}.so"
            print(f"compiling {name}, {kind}", flush=True)
            if ENGINE.compile(target, compiler, options):
                found[f"{name}, {kind}"] = ctypes.CDLL(str(target))
    return found


def _runs(needs: frozenset[str]) -> bool:
    return needs <= processor_features()


def measure(engine: NativeEngine) -> tuple[float, float]:
    """Prompt tokens per second and milliseconds per token."""
    began = time.process_time()
    engine.read(0, np.arange(PROMPT) % 250)
    read = time.process_time()
    for token in range(TOKENS):
        engine.step([token])
    return PROMPT / (read - began), 1e3 * (time.process_time() - read) / TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="token-shift")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = LanguageModel(load_recipe(options.recipe).model, seed=0)
    state = model.state_dict()
    tensors = {p.name: state[p.name].float().numpy() for p in model.plan.exported}
    PROCESSOR.build()
    rows = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            name: NativeEngine(model.plan, tensors, library, threads=1)
            for name, library in builds(Path(folder)).items()
        }
        for turn in range(1, options.rounds + 1):
            for name, engine in engines.items():
                rows[name].append(measure(engine))
                prompt, token = rows[name][-1]
                said = f"{token:6.2f} ms per token, prompt {prompt:,.0f} tokens/s"
                print(f"round {turn}: {name:<20} {said}", flush=True)
    for name, times in rows.items():
        prompt, token = zip(*times, strict=True)
        print(
            f"{name:<20} {median(token):6.2f} ms per token (best {min(token):.2f}), prompt"
            f" {median(prompt):,.0f} tokens/s (best {max(prompt):,.0f})"
        )


if __name__ == "__main__":
    main()
