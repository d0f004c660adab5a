"""Whether submissions read in parallel get the verdicts of one at a time.

    python benchmarks/audit/together.py LABELS FOLDER

LABELS is a JSONL file with `pr` and `path` a row, FOLDER holds each row's folder under its number
(see "Reproducing" in docs/audit.md). Prints one line a difference and a summary; exit code 1 if
there is a difference.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from niblick.audit.conduct import audit
from niblick.audit.types import Report
from niblick.errors import NiblickError


def read(path: Path, script: str | None) -> object:
    """All that reading a submission says."""
    try:
        report: Report = audit(path, run_code=False, script=script)
    except NiblickError as error:
        return str(error)
    found = [(f.rule, str(f.severity), f.verdict, f.evidence) for f in report.findings]
    return report.verdict, found


def main(labels: str, root: str) -> int:
    rows = [json.loads(line) for line in Path(labels).read_text().splitlines()]
    tasks = []
    for row in rows:
        path = Path(root, str(row["pr"]), row["path"])
        tasks.append((path.parent, path.name if path.suffix == ".py" else None))
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        together = list(pool.map(lambda task: read(*task), tasks))
    alone = [read(*task) for task in tasks]
    differ = [row["pr"] for row, a, b in zip(rows, together, alone, strict=True) if a != b]
    for number in differ:
        print(f"{number}: another report in parallel")
    print(f"{len(rows)} submissions, {len(differ)} differ")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
