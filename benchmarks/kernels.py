"""Milliseconds of the kernels that multiply, on matrix tiles and on vectors, in turn.

    python benchmarks/kernels.py [--rounds 25] [--threads 1] [--float32] [--variant avx2]

Pocket's sizes: 4,096 positions of width 128, 384 hidden channels, 4 heads of 32 on 2, a vocabulary
of 4,096. The least of all rounds, and the rate of the products alone. Buffers are warm, as they are
not inside of a training step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from niblick.model.kernels import Kernels, load_kernels
from niblick.model.kernels.operators import OPERATORS, use
from niblick.runtime import keep_freed_memory
from niblick.toolchain import VARIANTS, forced_variant

BATCH, LENGTH, WIDTH, INNER, VOCAB = 8, 512, 128, 384, 4096
HEADS, GROUPS, HEAD, SPAN, MATRICES = 4, 2, 32, 128, 16
Case = tuple[Callable[[], object], float]  # a call, and the operations of its products


def cases(kernels: Kernels, dtype: torch.dtype) -> dict[str, Case]:
    """By name."""

    def low(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype) / shape[-1] ** 0.5

    run, rows = OPERATORS, BATCH * LENGTH
    x, g = low(BATCH, LENGTH, WIDTH), low(BATCH, LENGTH, WIDTH)
    gain, scale = torch.rand(WIDTH), torch.rand(WIDTH)
    mixer = (x, gain, scale, low(INNER, WIDTH), low(WIDTH, INNER), 0.5, 1.0)
    mixed = run["channel"](x, *mixer)
    words, targets = torch.randn(VOCAB, WIDTH), torch.randint(0, VOCAB, (BATCH, LENGTH))
    shift = (x, None, gain, scale, *(low(WIDTH, WIDTH) for _ in range(3)))
    shifted = run["token_shift"](*shift)
    q, k = low(BATCH, HEADS, LENGTH, HEAD), low(BATCH, GROUPS, LENGTH, HEAD)
    v, gy = low(BATCH, LENGTH, GROUPS, HEAD), low(BATCH, LENGTH, HEADS, HEAD)
    seen = run["attend"](q, k, v, None, SPAN)
    stack, out = torch.randn(MATRICES, INNER, WIDTH), low(MATRICES, INNER, WIDTH)
    channel, pairs = 2 * 2 * rows * WIDTH * INNER, 2 * rows * WIDTH * WIDTH
    visible = 2 * BATCH * HEADS * HEAD * (LENGTH * SPAN - SPAN * (SPAN - 1) / 2)
    newton = 5 * MATRICES * WIDTH * WIDTH * (INNER + WIDTH + 2 * INNER)
    coefficients = (3.4445, -4.775, 2.0315, 5)
    return {
        "channel": (lambda: run["channel"](x, *mixer), channel),
        "channel, back": (lambda: run["channel_back"](g, *mixer, *mixed[1:]), 2 * channel),
        "head and loss": (
            lambda: run["head_loss"](x, words, targets, 15.0, True),
            3 * 2 * rows * WIDTH * VOCAB,
        ),
        "token shift": (lambda: run["token_shift"](*shift), 3 * pairs),
        "token shift, back": (lambda: run["token_shift_back"](g, *shift, *shifted[1:]), 6 * pairs),
        "attention": (lambda: run["attend"](q, k, v, None, SPAN), 2 * visible),
        "attention, back": (
            lambda: run["attend_back"](gy, q, k, v, None, *seen, SPAN),
            5 * visible,
        ),
        "newton": (
            lambda: kernels("newton", dtype, stack, out, *coefficients, *stack.shape),
            newton,
        ),
    }


def least(call: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="in float32 instead of bfloat16")
    parser.add_argument("--variant", choices=[v.name for v in VARIANTS], help="of the library")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    with forced_variant(options.variant) if options.variant else nullcontext():
        kernels = load_kernels()
    dtype = torch.float32 if options.float32 else torch.bfloat16
    if kernels is None or dtype not in kernels.multiplies:
        parser.exit(1, f"there are no products of {dtype} for this processor\n")
    use(kernels)
    forms = [False, True] if kernels.tiles and not options.float32 else [False]
    work = cases(kernels, dtype)
    best = {(name, form): float("inf") for name in work for form in forms}
    for _ in range(3):
        for form in forms:
            kernels.use_tiles(form)
            for name, (call, _) in work.items():
                best[name, form] = min(best[name, form], least(call, options.rounds))
    for name, (_, operations) in work.items():
        said = [
            f"{'tiles' if form else 'vectors'} {1e3 * best[name, form]:7.2f} ms"
            f" {operations / best[name, form] / 1e9:6.0f} GFLOP/s"
            for form in forms
        ]
        print(f"{name:18}", "   ".join(said))
