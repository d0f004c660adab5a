"""The plainest task: import a script and say whether it went well. No package is needed, none is
stood in.
"""

from __future__ import annotations

from typing import Any

from niblick.audit.inside.loading import load_script


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Imports `job["script"]`; returns `{ok, error, seconds, attempts}`."""
    loaded = load_script(job["folder"], job["script"], job.get("environment", {}))
    return loaded.summary()
