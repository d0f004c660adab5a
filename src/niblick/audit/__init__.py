"""Reviews anybody's training script or record folder: is its score valid, and by what evidence.

`review.review` is the entry point. Reading never runs a submission's code; running happens only in
`audit.sandbox`'s child process.

The package can be called: `niblick.audit(path)` is `niblick.audit.audit(path)`, whatever modules of
it have been imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from niblick.audit.types import Report


def audit(
    path: str | Path,
    *,
    static: bool = False,
    trust: bool = False,
    script: str | None = None,
    data: str | Path | None = None,
) -> Report:
    """The review of a training script or record folder: verdict, findings, evidence.

    `static` only reads; else the code runs in this machine's sandbox, or with `trust` without one.
    `script` names the file to review where a folder holds several. A text or shards as `data` are
    what a folder's own artifact is scored on, beside its claim. Needs no torch. Raises `AuditError`
    for a path that cannot be read.
    """
    from niblick.audit.conduct import audit as review
    from niblick.audit.recompute import recomputed
    from niblick.errors import AuditError

    if trust and static:
        raise AuditError("trust and static exclude each other: static runs nothing")
    if not Path(path).exists():
        raise AuditError(
            f"{path}: no such file or folder; expected a training script or a record folder"
        )
    if data is not None and not Path(data).exists():
        raise AuditError(f"{data}: no such file or folder; expected a text or a folder of shards")
    report = review(Path(path), run_code=not static, trust=trust, script=script)
    return report if data is None else recomputed(report, Path(path), Path(data))


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Report:
        return audit(*args, **options)


sys.modules[__name__].__class__ = _Callable
