"""Fetching FineWeb shards in the challenge's layout from a Hugging Face dataset repository (extra
`hub`).

The repository's file listing decides what there is to fetch; a manifest in it, which may be stale,
is not consulted. Every file is verified (size and SHA-256 of the listing, header and token count of
a shard) before it takes its final name, so an interrupted fetch continues where it stopped and a
damaged file is fetched again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from niblick.data.dataset import tokenizer_pattern
from niblick.data.shards import ShardError, count_tokens
from niblick.errors import DataError
from niblick.extras import needs
from niblick.files import sha256_file

REPOSITORY = "willdepueoai/parameter-golf"
ROOT = "datasets"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the repository lists it; `sha256` is known for large files only."""

    path: str
    size: int
    sha256: str | None = None


class Hub(Protocol):
    """The two things a repository is asked for."""

    def list_files(self, folder: str) -> Sequence[RemoteFile]:
        """Files directly in `folder`; empty where there is no such folder."""

    def download(self, path: str, into: Path) -> Path:
        """Fetch one file to somewhere under `into`, continuing a part that is there; gives its
        place.
        """


@dataclass(frozen=True)
class HuggingFaceHub:
    """A dataset repository on the Hugging Face hub (or at another endpoint of its kind), at a
    revision.
    """

    repository: str
    revision: str | None = None
    endpoint: str | None = None

    def list_files(self, folder: str) -> Sequence[RemoteFile]:
        """See `Hub`."""
        hub = _library()
        try:
            entries = hub.HfApi(endpoint=self.endpoint).list_repo_tree(
                self.repository, folder, repo_type="dataset", revision=self.revision
            )
            files = [entry for entry in entries if isinstance(entry, hub.hf_api.RepoFile)]
        except hub.errors.EntryNotFoundError:
            return []
        except _failures() as error:
            raise self._failure(f"fetch {folder!r} from", error) from None
        return [
            RemoteFile(file.path, file.size, file.lfs.sha256 if file.lfs else None)
            for file in files
        ]

    def list_all(self) -> tuple[str, Sequence[RemoteFile]]:
        """The commit that the revision means now, and every file of it."""
        hub = _library()
        try:
            info = hub.HfApi(endpoint=self.endpoint).dataset_info(
                self.repository, revision=self.revision, files_metadata=True
            )
        except _failures() as error:
            raise self._failure("list", error) from None
        files = info.siblings or ()
        return str(info.sha), [
            RemoteFile(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else None) for f in files
        ]

    def download(self, path: str, into: Path) -> Path:
        """See `Hub`."""
        hub = _library()
        place = {"repo_type": "dataset", "revision": self.revision, "endpoint": self.endpoint}
        try:
            return Path(hub.hf_hub_download(self.repository, path, local_dir=str(into), **place))
        except _failures() as error:
            raise self._failure(f"fetch {path!r} from", error) from None

    def _failure(self, what: str, error: Exception) -> DataError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DataError(f"cannot {what} dataset repository {self.repository!r}: {reason}")


def _library() -> Any:
    with needs("a dataset of the hub", "hub", DataError):
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.hf_api
    return huggingface_hub


def _failures() -> tuple[type[Exception], ...]:
    """What a fetch can fail with; `HTTPError` is the base of whichever transport the library's
    release uses.
    """
    errors = _library().errors
    return errors.HfHubHTTPError, errors.HTTPError, OSError, ValueError


def dataset_folder(variant: str) -> str:
    """The repository's folder name of a tokenizer family: `sp1024` and the like, or `byte260`."""
    if not re.fullmatch(r"byte260|sp[1-9]\d*(_\w+)?", variant):
        raise DataError(
            f"unknown FineWeb variant {variant!r}; expected byte260 or sp followed by a size, as"
            " sp1024"
        )
    return f"fineweb10B_{variant}"


def fetch_fineweb(
    *,
    out: Path,
    variant: str = "sp1024",
    train_shards: int = 1,
    repository: str = REPOSITORY,
    root: str = ROOT,
    revision: str | None = None,
    prefix: str = "fineweb",
    hub: Hub | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Fetch all validation shards, the first `train_shards` training shards and the tokenizer into
    `out`.

    Gives the folder of shards, `out/datasets/fineweb10B_<variant>`, which `open_dataset` reads.
    Files are `<root>/datasets/fineweb10B_<variant>/<prefix>_train_000000.bin` and so on in
    `repository`. What is complete on disk is not fetched again. Raises `DataError`.
    """
    if train_shards < 0:
        raise DataError(f"{train_shards} training shards; expected 0 or more")
    hub = hub or HuggingFaceHub(repository, revision)
    name = dataset_folder(variant)
    remote = _join(root, "datasets", name)
    listed = sorted(hub.list_files(remote), key=lambda file: file.path)
    wanted = _choose(listed, prefix, train_shards, f"{repository}/{remote}")
    folder = out / "datasets" / name
    for file in wanted:
        tokens = _fetch_one(hub, file, folder, out)
        report(f"{Path(file.path).name}: {tokens:,} tokens")
    for file in hub.list_files(_join(root, "tokenizers")):
        if Path(file.path).match(tokenizer_pattern(name)):
            _fetch_one(hub, file, out / "tokenizers", out)
            report(f"{Path(file.path).name}: tokenizer")
    return folder


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") for part in parts if part.strip("/"))


def _choose(
    listed: Sequence[RemoteFile], prefix: str, train_shards: int, place: str
) -> list[RemoteFile]:
    training = [file for file in listed if Path(file.path).match(f"{prefix}_train_*.bin")]
    validation = [file for file in listed if Path(file.path).match(f"{prefix}_val_*.bin")]
    if not validation:
        raise DataError(
            f"{place} lists no {prefix}_val_*.bin shards; give --repo, --root or --variant that has"
            " them"
        )
    if train_shards > len(training):
        raise DataError(f"{train_shards} training shards asked for; {place} has {len(training)}")
    return validation + training[:train_shards]


def _fetch_one(hub: Hub, file: RemoteFile, folder: Path, out: Path) -> int:
    """Bring one file to `folder`, verified; gives its tokens (0 for other files than shards)."""
    target = folder / Path(file.path).name
    if target.is_file() and _fault(target, file) is None:
        return _tokens(target)
    got = hub.download(file.path, out / ".download")
    if (fault := _fault(got, file)) is not None:
        got.unlink(missing_ok=True)
        raise DataError(f"{file.path!r} arrived damaged: {fault}; fetch again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        got.resolve().replace(target)
    except OSError as error:
        raise DataError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return _tokens(target)


def _tokens(path: Path) -> int:
    return count_tokens(path) if path.suffix == ".bin" else 0


def _fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a file on disk, None if nothing is."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size:,} bytes, {file.size:,} listed"
    try:
        _tokens(path)
    except ShardError as error:
        return str(error)
    if file.sha256 is not None and sha256_file(path) != file.sha256:
        return "its SHA-256 is not the one listed"
    return None
