"""Reports as plain data: what `--json` prints, one object a path. Foreign text stays as it is: JSON
quotes it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from niblick.audit.types import Report


def report_data(report: Report) -> dict[str, Any]:
    """`path`, `verdict`, `recommendation`, `findings`, `smoke` and `record` of a report."""
    data = dataclasses.asdict(report)
    for finding in data["findings"]:
        finding["severity"] = finding["severity"].value
        finding["line"] = finding["span"]["start"] if finding["span"] else None
        finding["file"] = finding["span"]["file"] if finding["span"] else None
    return data


def reports_json(reports: Iterable[Report]) -> str:
    """A JSON list, ASCII only, so that no character of a submission reaches a terminal raw; null
    for what is no finite number.
    """
    data = _finite([report_data(report) for report in reports])
    return json.dumps(data, indent=1, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
