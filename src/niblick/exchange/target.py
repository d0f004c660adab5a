"""Where an export goes: to a new place, or with `force` in place of what is there, whole or not at
all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niblick.errors import NiblickError
from niblick.limits import quoted


def check_file(out: Path, *, force: bool) -> None:
    """Raise `NiblickError` where a file cannot be exported to `out`."""
    if out.is_dir():
        raise NiblickError(f"{quoted(str(out))} is a folder; --out names the file")
    if out.exists() and not force:
        raise _occupied(out)


def check_folder(out: Path, *, force: bool, mark: str, said: str = "") -> None:
    """Raise `NiblickError` where a folder cannot be exported to `out`.

    An empty folder may be there; one that holds something is replaced with `force` only if it holds
    the file `mark`, in which `said` stands, as an earlier export does.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not force:
        raise _occupied(out)
    if out.exists() and not _says(out / mark, said):
        raise NiblickError(f"{quoted(str(out))} holds no earlier export ({mark}); it is kept")


def _says(path: Path, said: str) -> bool:
    try:
        return said in path.read_text("utf-8", "replace")
    except OSError:
        return False


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` at the end of the block; nothing is left of
    it where the block fails. `NiblickError` where it cannot be written.
    """
    parent, work = out.absolute().parent, None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".niblick-export-", dir=parent))
        filled = work / "new"
        filled.mkdir()
        yield filled
        if out.exists():
            out.rename(work / "old")
        filled.rename(out)
    except OSError as error:
        raise NiblickError(f"cannot export to {quoted(str(out))}: {error.strerror}") from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _occupied(out: Path) -> NiblickError:
    return NiblickError(f"{quoted(str(out))} exists; choose another --out, or --force replaces it")
