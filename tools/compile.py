"""Compiles the C libraries of this checkout for this processor, at set-up rather than at first use.

What is compiled already is kept; where nothing can compile, the plain forms will run, and this says
so. Set-up never fails for it.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from niblick.toolchain import LIBRARIES


def main() -> None:
    """Compile side by side, and say how long it took and what could not be."""
    print("compiling the C libraries for this processor ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda library: library.build(), LIBRARIES))
    missing = [library.name for library, good in zip(LIBRARIES, done, strict=True) if not good]
    if missing:
        print(f"not compiled, so slower: {', '.join(missing)}", file=sys.stderr)
    else:
        print(f"compiled in {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
