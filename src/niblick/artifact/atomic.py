"""Writing a model file whole or not at all."""

from __future__ import annotations

from pathlib import Path

from niblick.errors import ArtifactError, DataError
from niblick.files import write_atomically


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` through a temporary file beside it; `ArtifactError` when the disk
    refuses.
    """
    try:
        write_atomically(path, [data])
    except DataError as error:
        raise ArtifactError(str(error)) from None
    except OSError as error:
        raise ArtifactError(f"cannot write {str(path)!r}: {error.strerror}") from None
