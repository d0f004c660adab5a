"""Time and bits per byte of every evaluation mode, and what legal test-time training gains, in one
run.

    python benchmarks/evaluation.py MODEL [--data DIR] [--context N] [--tokens N] [--repeat N]
        [--json]
    python benchmarks/evaluation.py [--recipe NAME] [--set KEY=VALUE ...]  # trains one first

MODEL is a file, a run or a shipped model. All rows but the last are of the validation split.
Seconds are processor time of this process, the best of `--repeat` passes: on a machine that does
other work too, wall time says little. Ends with exit code 1 where `streaming` costs more than a
tenth of `sliding --stride 64`, or is worse by more than 0.002 bits per byte.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import niblick
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import resolve_dataset
from niblick.evaluation import Adaptation, EvaluationOptions, LeakyTraining
from niblick.evaluation.evaluate import score_tokens
from niblick.model import LanguageModel, build_model
from niblick.recipe import load_recipe
from niblick.runtime import World, cache_folder
from niblick.training import train
from niblick.units import LN2

MODES = {
    "chunked": EvaluationOptions(mode="chunked"),
    "streaming": EvaluationOptions(mode="streaming"),
    "document": EvaluationOptions(mode="document"),
    "sliding, stride 512": EvaluationOptions(mode="sliding", stride=512),
    "sliding, stride 64": EvaluationOptions(mode="sliding", stride=64),
}
LEARNING = {
    "streaming + SGD": EvaluationOptions(ttt=Adaptation(method="sgd")),
    "streaming + AdamW": EvaluationOptions(ttt=Adaptation(method="adamw")),
    "streaming + SGD in 4 phases": EvaluationOptions(
        ttt=Adaptation(method="sgd", phases=4, epochs=2)
    ),
    "document + adapters": EvaluationOptions(mode="document", ttt=Adaptation(method="lora")),
    "leaky-ttt, 1 epoch (NOT A VALID SCORE)": EvaluationOptions(
        mode="leaky-ttt", leaky=LeakyTraining(epochs=1)
    ),
}


def main() -> int:
    """Print one table; 1 where streaming misses its bounds."""
    options = arguments()
    torch.set_num_threads(options.threads)
    model, dataset = load(options)
    context = options.context or model.recipe.context
    present = [name for name in ("validation", "test") if dataset.files.get(name)]
    splits = {name: tokens_and_bytes(dataset, name, options.tokens) for name in present}
    tokens, size = splits["validation"]
    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    say(
        f"{model.plan.parameter_count:,} parameters, context {context}, {len(tokens) - 1:,} tokens,"
        f" {size:,} bytes\n"
    )
    say("| mode | bpb | processor seconds | tokens/s | against streaming |\n|---|---|---|---|---|")
    found: dict[str, tuple[float, float]] = {}
    cases = {**MODES, **({} if options.plain else LEARNING)}
    rows = [(name, settings, "validation") for name, settings in cases.items()]
    if "test" in splits:
        rows.append(("streaming, test split", MODES["streaming"], "test"))
    for name, settings, split in rows:
        chosen = replace(settings, context=context, stride=min(settings.stride, context))
        seconds, bpb = measure(model, *splits[split], chosen, options.repeat)
        found[name] = seconds, bpb
        base = found.get("streaming")
        against = "-" if base is None else f"{seconds / base[0]:.2f} x, {bpb - base[1]:+.4f} bpb"
        rate = len(splits[split][0]) / seconds
        say(f"| {name} | {bpb:.4f} | {seconds:.2f} | {rate:,.0f} | {against} |")
    if options.json:
        print(json.dumps({name: {"bpb": row[1], "seconds": row[0]} for name, row in found.items()}))
    return verdict(found["streaming"], found["sliding, stride 64"], say)


def tokens_and_bytes(dataset: Dataset, split: str, count: int | None) -> tuple[np.ndarray, int]:
    """The first `count` tokens of a split, and the bytes of all but the first of them."""
    tokens = np.asarray(dataset.tokens(split))[:count]
    return tokens, int(dataset.tokenizer.byte_table.count(tokens[1:], tokens[:-1]).sum())


def measure(
    model: LanguageModel, tokens: np.ndarray, size: int, options: EvaluationOptions, repeat: int
) -> tuple[float, float]:
    """(processor seconds, bits per byte) of one mode."""
    best, bpb = float("inf"), 0.0
    for _ in range(repeat):
        began = time.process_time()
        nll = score_tokens(model, tokens, options, World())
        best = min(best, time.process_time() - began)
        bpb = float(nll.astype(np.float64).sum()) / LN2 / size
    return best, bpb


def verdict(
    streaming: tuple[float, float], sliding: tuple[float, float], say: Callable[[str], None]
) -> int:
    """Whether streaming costs at most a tenth of sliding and is no worse by more than 0.002."""
    share, gap = streaming[0] / sliding[0], streaming[1] - sliding[1]
    say(
        f"\nstreaming costs {share:.3f} of sliding at stride 64 (at most 0.1) and differs by"
        f" {gap:+.4f} bpb (at most +0.002)"
    )
    return int(share > 0.1 or gap > 0.002)


def load(options: argparse.Namespace) -> tuple[LanguageModel, Dataset]:
    """The named model and its data, or a model trained here."""
    if options.model is not None:
        opened = niblick.load(options.model)
        recipe, model = opened.recipe, opened.torch(gradients=True)
    else:
        recipe, model = load_recipe(options.recipe, options.set), None
    dataset = (
        open_dataset(options.data)
        if options.data
        else resolve_dataset(recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder())
    )
    if model is None:
        with tempfile.TemporaryDirectory() as folder:
            result = train(recipe, dataset, Path(folder) / "run", world=World())
        print(
            f"trained {recipe.name} on {result.tokens:,} tokens in {result.seconds:.0f} s",
            flush=True,
        )
        model = build_model(recipe, result.tensors)
    return model, dataset


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", default="token-shift-small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--context", type=int)
    parser.add_argument("--tokens", type=int, help="score only the first tokens of the split")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    parser.add_argument("--plain", action="store_true", help="leave test-time training out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
