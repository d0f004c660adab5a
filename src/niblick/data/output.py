"""The folder that a preparation writes: put in place whole, reused, never another's replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from niblick.data.dataset import Dataset, open_dataset
from niblick.data.manifest import Manifest, SplitEntry, load_manifest
from niblick.errors import DataError
from niblick.text.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.model"


def shard_name(split: str, number: int) -> str:
    """The file of a split's shard, counted from 0."""
    return f"niblick_{'val' if split == 'validation' else split}_{number:06d}.bin"


def save_manifest(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    key: str,
    corpus: str,
    corpus_sha256: str,
    attribution: str,
    splits: dict[str, SplitEntry],
) -> None:
    """Write the manifest of `folder`, whose tokenizer is in TOKENIZER_FILE."""
    Manifest(
        key=key,
        corpus=corpus,
        corpus_sha256=corpus_sha256,
        attribution=attribution,
        tokenizer_file=TOKENIZER_FILE,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        lossless=tokenizer.lossless,
        splits=splits,
    ).save(folder)


def place_of(out: Path) -> Path:
    """Where `out` leads: a link stays, and the folder behind it is what is replaced.

    Raises `DataError` for the current folder, which cannot be.
    """
    if (place := out.resolve()) == Path.cwd():
        raise DataError(f"output {str(out)!r} is the current folder; name one inside it")
    return place


def reuse(out: Path, key: str) -> Dataset | None:
    """The dataset in `out` if it is whole and of these inputs; None if it may be written anew."""
    if out.exists() and not out.is_dir():
        raise DataError(f"output {str(out)!r} is a file, not a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        manifest = load_manifest(out)
        if manifest is not None:
            return open_dataset(out) if manifest.key == key else None
    except DataError:
        return None
    raise DataError(
        f"output {str(out)!r} is not empty and holds no data prepared by niblick; choose another"
        " folder"
    )


def put_in_place(work: Path, out: Path, key: str) -> Dataset:
    """Make `work` the folder `out`, unless another process has put the same data there in the
    meantime.
    """
    work.chmod(0o777 & ~_umask())
    if (present := reuse(out, key)) is not None:
        return present
    old = work.with_name(f"{work.name}.old")
    try:
        if out.exists():
            out.rename(old)
        work.rename(out)
    except OSError:
        if (present := reuse(out, key)) is None:
            raise
        return present
    finally:
        shutil.rmtree(old, ignore_errors=True)
    return open_dataset(out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
