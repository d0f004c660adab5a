"""Held-out text of a user's own: whole documents by their content, long ones by contiguous blocks.

One document in 20 is validation and one test, by SHA-256; exact and near duplicates go together.
Where that gives less than 20 kB of validation, those next in order follow, up to a tenth of the
text. A document of 2,000 bytes and a tenth of the whole or more is not moved as a whole: of each of
its stretches the end is validation and, of 400 kB or more, the middle test; training pieces that
nearly repeat held-out ones are left out. Near copies that make up a tenth of the whole all train.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from niblick.data.duplicates import group_duplicates
from niblick.data.textfiles import cut_text

ENOUGH = 20_000  # bytes of held-out text, below which a score's interval is wide
_PARTS, _LARGEST = 20, 0.1
_STRETCHES, _BLOCKS = 4, 2_000
Splits = dict[str, list[str]]
Rank = tuple[bool, int, int]


@dataclass(frozen=True)
class Held:
    """What was done to a text: its splits, near copies that went together, pieces left out."""

    splits: Splits
    grouped: int = 0
    left_out: int = 0


def text_digest(text: str) -> bytes:
    """SHA-256 of a document's UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def size_of(texts: Sequence[str]) -> int:
    """UTF-8 bytes of `texts` together."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def split_own(texts: Sequence[str]) -> Held:
    """Sort whole documents into train, validation and test; empty ones are dropped."""
    texts = [text for text in texts if text]
    total = size_of(texts)
    small = total < _PARTS * ENOUGH
    groups: dict[int, list[str]] = defaultdict(list)
    for text, group in zip(texts, group_duplicates(texts), strict=True):
        groups[group].append(text)
    splits: Splits = {"train": [], "validation": [], "test": []}
    ranked: list[tuple[Rank, list[str]]] = []
    blocks = False
    for members in groups.values():
        long = size_of(members) > _LARGEST * total
        if len(texts) == 1 or (long and len(members) == 1 and len(members[0]) >= _BLOCKS):
            blocks = True
            for split, parts in _in_blocks(members[0], small).items():
                splits[split] += parts
        elif long and len(members) > 1:
            splits["train"] += members
        else:
            ranked.append((_rank(min(members, key=text_digest)), members))
    _by_rank(ranked, splits, total)
    left_out = _leave_out_copies(splits) if blocks else 0
    return Held(splits, len(texts) - len(groups), left_out)


def _rank(text: str) -> tuple[bool, int, int]:
    """In which order documents are held out: by h mod 20, then h; what is test comes last."""
    h = int.from_bytes(text_digest(text), "big")
    return h % _PARTS == 1, h % _PARTS, h


def _by_rank(ranked: list[tuple[Rank, list[str]]], splits: Splits, total: int) -> None:
    """Part 0 is validation, with those next in order until there is enough; part 1 is test."""
    held, wanted = size_of(splits["validation"]), min(ENOUGH, _LARGEST * total)
    for (test, part, _), members in sorted(ranked):
        if not test and (part == 0 or held < wanted):
            splits["validation"] += members
            held += size_of(members)
        else:
            splits["test" if test else "train"] += members


def _in_blocks(text: str, small: bool) -> Splits:
    """One long document as contiguous blocks, cut at line ends; they join to the whole."""
    stretches = 1 if len(text) < _PARTS * ENOUGH * _STRETCHES else _STRETCHES
    size = max(len(text), 1)
    held, edges = max(1 / _PARTS, min(_LARGEST, ENOUGH / size)), [0]
    splits: Splits = {"train": [], "validation": [], "test": []}
    for number in range(stretches):
        start, length = number * len(text) / stretches, len(text) / stretches
        middle = 0.5 if small else 0.5 + held
        ends = (("train", 0.5), ("test", middle), ("train", 1 - held), ("validation", 1.0))
        for split, end in ends:
            at = _line_end(text, round(start + length * end))
            if at > edges[-1]:
                splits[split] += cut_text(text[edges[-1] : at])
                edges.append(at)
    return splits


def _line_end(text: str, at: int) -> int:
    """The end of the paragraph, line or word nearest before `at`, not far away; else `at`."""
    if at >= len(text):
        return len(text)
    reach = max(0, at - 2000)
    for mark in ("\n\n", "\n", " "):
        if (found := text.rfind(mark, reach, at)) >= 0:
            return found + len(mark)
    return at


def _leave_out_copies(splits: Splits) -> int:
    """Drop pieces of training that nearly repeat held-out ones; how many there were."""
    held = splits["validation"] + splits["test"]
    groups = group_duplicates([*held, *splits["train"]])
    taken = set(groups[: len(held)])
    pairs = zip(splits["train"], groups[len(held) :], strict=True)
    kept = [text for text, group in pairs if group not in taken]
    dropped, splits["train"] = len(splits["train"]) - len(kept), kept
    return dropped
