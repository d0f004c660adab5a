"""How long the command line takes to start, beside what its dependencies take alone.

    python benchmarks/startup.py [ARTIFACT] [--repeats 11] [--threads N] [--json]

Every round starts each process once, so that a busy machine disturbs all alike. A process counts
until the first byte that it prints, in wall seconds, and whole in processor seconds (user and
system), which other processes disturb less; medians. Differences and ratios are taken within each
round. The first row of each block is what the others are compared with. The first token of an
artifact is to come within 2.5 times what importing numpy and pydantic takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

Times = tuple[float, float]  # wall, processor
CLI = [sys.executable, "-m", "niblick"]
SAY = "; print('x', flush=True)"


def cases(artifact: str | None) -> dict[str, tuple[list[str], str | None]]:
    """Name -> command, and the name of the case that it is compared with."""
    first, runtime = "import pydantic, typer", "import numpy, pydantic"
    found: dict[str, tuple[list[str], str | None]] = {
        first: ([sys.executable, "-c", first + SAY], None),
        "niblick --help": ([*CLI, "--help"], first),
        "niblick plan pocket": ([*CLI, "plan", "pocket"], first),
    }
    if artifact is not None:
        tokens = [
            "generate",
            artifact,
            "--prompt",
            "The river",
            "--max-tokens",
            "1",
            "--temperature",
            "0",
        ]
        found[runtime] = ([sys.executable, "-c", runtime + SAY], None)
        found["first token"] = ([*CLI, *tokens], runtime)
    return found


def run(command: list[str], environment: dict[str, str]) -> Times:
    """Seconds of one process."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        wall = time.perf_counter() - started
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    return wall, used.ru_utime + used.ru_stime


def measure(options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Medians by case."""
    todo = cases(options.artifact)
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }  # as installed
    if options.threads is not None:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    rounds: list[dict[str, Times]] = []
    for number in range(options.repeats + 1):
        times = {name: run(command, environment) for name, (command, _) in todo.items()}
        if number:  # the first round fills caches
            rounds.append(times)
    found: dict[str, dict[str, float | None]] = {}
    for name, (_, beside) in todo.items():
        row: dict[str, float | None] = {}
        for index, kind in enumerate(("wall", "processor")):
            row[kind] = median(times[name][index] for times in rounds)
            more = [times[name][index] - times[beside][index] for times in rounds] if beside else []
            row[f"{kind}_more"] = median(more) if more else None
            times_as_long = [t[name][index] / t[beside][index] for t in rounds] if beside else []
            row[f"{kind}_ratio"] = median(times_as_long) if times_as_long else None
        found[name] = row
    return found


def main() -> int:
    """Print one table or one JSON document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", nargs="?", help="an artifact whose first token is timed")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the processes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(
            json.dumps(
                {"repeats": options.repeats, "load": os.getloadavg()[0], "seconds": found}, indent=1
            )
        )
        return 0
    print(f"load {os.getloadavg()[0]:.1f}, medians of {options.repeats}\n")
    print("| process | wall s | more | times | processor s | more | times |")
    print("|---|---|---|---|---|---|---|")
    for name, row in found.items():
        cells = (
            "" if row[key] is None else f"{row[key]:.3f}"
            for kind in ("wall", "processor")
            for key in (kind, f"{kind}_more", f"{kind}_ratio")
        )
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
