"""`python -m fuzz --seconds 600`: new cases until the time is over; what breaks a promise is kept.

A case that fails is printed, and added to kept.txt, which the tests replay. `--sanitize` builds
every C library with the address and undefined-behaviour sanitizers first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from fuzz.cases import TARGETS, make_case
from fuzz.harness import Result, broken_promises, files_of, server
from fuzz.seeds import make_seeds
from niblick.toolchain import CODECS, ENGINE, KERNELS

KEPT = Path(__file__).parent / "kept.txt"
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1")


def kept_cases() -> list[tuple[str, int]]:
    """Cases that once failed."""
    lines = [line.split() for line in KEPT.read_text("utf-8").splitlines() if line[:1] != "#"]
    return [(name, int(seed)) for name, seed in lines]


def sanitized_libraries(cache: Path) -> dict[str, str]:
    """Build every C library with sanitizers into `cache`; the environment that uses them."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    for library in (KERNELS, ENGINE, CODECS):
        compiler = library.compiler()
        assert compiler and library.compile(library.path(), compiler, _SANITIZERS), library.name
    runtime = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True).strip()
    options = "detect_leaks=0:allocator_may_return_null=1"
    return {"XDG_CACHE_HOME": str(cache), "LD_PRELOAD": runtime, "ASAN_OPTIONS": options}


def check_case(run: object, name: str, seed: int, seeds: object) -> tuple[Result, list[str]]:
    """Make and run one case in a folder of its own; its result and the promises it breaks."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        arguments = make_case(name, seed, folder, seeds)  # type: ignore[arg-type]
        before = set(files_of(folder))
        result = run(arguments, folder)  # type: ignore[operator]
        left = [file for file in files_of(folder) if file not in before]
        return result, broken_promises(result, left)


def main() -> int:
    """Fuzz until the time is over; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=int(time.time()), help="first seed")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--sanitize", action="store_true")
    given = parser.parse_args()
    done = broken = 0
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        seeds = make_seeds(scratch / "seeds")
        environment = sanitized_libraries(scratch / "cache") if given.sanitize else None
        end = time.monotonic() + given.seconds
        with server(scratch, environment) as run:
            for seed in count(given.first):
                for name in given.target or TARGETS:
                    if time.monotonic() > end:
                        print(f"{done} cases, {broken} broke a promise")
                        return int(broken > 0)
                    result, problems = check_case(run, name, seed, seeds)
                    done += 1
                    if problems:
                        broken += 1
                        _report(name, seed, result, problems)
    return 0


def _report(name: str, seed: int, result: Result, problems: list[str]) -> None:
    print(f"{name} {seed}: {'; '.join(problems)}\n  {result.arguments}\n  {result.err[-1500:]}")
    sys.stdout.flush()
    with KEPT.open("a", encoding="utf-8") as file:
        file.write(f"{name} {seed}\n")


if __name__ == "__main__":
    sys.exit(main())
