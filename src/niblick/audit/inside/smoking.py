"""The smoke test's half inside the sandbox: import with stand-ins, then measure what the script
defines.
"""

from __future__ import annotations

import sys
from typing import Any

from niblick.audit.inside.loading import load_script
from niblick.audit.inside.measuring import measure
from niblick.audit.stand_ins.finder import StandInFinder
from niblick.audit.stand_ins.torch_hook import TorchHook


def prepare(job: dict[str, Any]) -> tuple[StandInFinder, TorchHook]:
    """Puts the stand-ins in place; nothing heavy is imported yet."""
    finder, hook = StandInFinder(job.get("declared", ())), TorchHook()
    sys.meta_path.insert(0, hook)
    sys.meta_path.append(finder)
    return finder, hook


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Imports `job["script"]` and measures it; returns the import's summary, `stood_in` and
    `measured`.
    """
    finder, hook = prepare(job)
    loaded = load_script(
        job["folder"], job["script"], job.get("environment", {}), lambda: hook.seconds
    )
    measured = (
        measure(loaded.module, [job.get("text", ""), *loaded.executed])
        if loaded.module is not None
        else {}
    )
    return {**loaded.summary(), "stood_in": finder.used, "measured": measured}
