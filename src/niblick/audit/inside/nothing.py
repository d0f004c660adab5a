"""A task that does nothing: what the probe of a machine's isolation runs."""

from __future__ import annotations

from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Reports that the walls stand."""
    return {"ok": True, "task": job["task"]}
