"""What the names of data files say about their split."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_VALIDATION = re.compile(
    r"(?<![a-z])(?:val|valid|validation|test|eval|holdout|heldout)(?![a-z])", re.IGNORECASE
)
_TRAINING = re.compile(r"train", re.IGNORECASE)
_STREAM_FILES = frozenset({".bin", ".npy", ".npz", ".parquet", ".jsonl", ".pt", ".u16", ".arrow"})


def path_kind(path: str) -> str | None:
    """ "val" or "train" where a data path says which split it is; the file name weighs more than
    its folders.
    """
    for part in (PurePosixPath(path).name, path):
        if _VALIDATION.search(part):
            return "val"
        if _TRAINING.search(part):
            return "train"
    return None


def glob_paths(pattern: str) -> list[str]:
    """Paths that a data pattern would match: one that names no split matches both."""
    if "*" not in pattern and "?" not in pattern:
        return [pattern]
    kind = path_kind(PurePosixPath(pattern).name)
    if kind or PurePosixPath(pattern).suffix not in _STREAM_FILES:
        return [pattern.replace("*", "000000").replace("?", "0")]
    return [
        pattern.replace("*", "train_000000", 1).replace("*", "0"),
        pattern.replace("*", "val_000000", 1).replace("*", "0"),
    ]
