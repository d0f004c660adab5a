"""What writing metrics costs in training; `python benchmarks/metrics.py [RECIPE] [--steps N]`.

One run, in which every other step is observed as before the gradient norm, the learning rates, the
speed and the memory were recorded (five values), and the steps between as now: processor time of
both, in turn, and of the steps themselves. The norm is measured where it is taken, in clipping.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import niblick
from niblick.training.trainer import Loop

SECONDS: dict[str, list[float]] = defaultdict(list)


def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The call, its processor time noted."""
    began = time.process_time()
    found = call(*arguments)
    SECONDS[name].append(time.process_time() - began)
    return found


def observe_before(loop: Loop, loss: Any) -> None:
    """What a step recorded before."""
    state = loop.state
    progress = loop._progress(float(loss))
    row = {"step": state.step, "seconds": round(loop.clock.seconds, 3), "tokens": state.tokens}
    loop._log(row | {"loss": progress.loss, "multiplier": progress.multiplier})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="pocket")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    observe, step = Loop._observe, Loop._step

    def either(loop: Loop, loss: Any) -> None:
        now = loop.state.step % 2 == 0
        timed("now" if now else "before", observe if now else observe_before, loop, loss)

    Loop._observe = either  # type: ignore[method-assign]
    Loop._step = lambda loop: timed("step", step, loop)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        niblick.train(
            options.recipe,
            out=Path(folder) / "run",
            duration=f"{options.steps} steps",
            settings=["training.threads=1", 'artifact.codec="int-zlib"', "artifact.max_bytes=1e8"],
        )
    middle = {name: 1e6 * median(values) for name, values in SECONDS.items()}
    more = middle["now"] - middle["before"]
    print(
        f"{options.recipe}: a step {middle['step'] / 1e3:,.1f} ms; observing it"
        f" {middle['now']:,.0f} us now, {middle['before']:,.0f} us before:"
        f" {100 * more / middle['step']:.3f} % of a step"
        f" ({len(SECONDS['now'])} and {len(SECONDS['before'])} steps, medians)"
    )


if __name__ == "__main__":
    main()
