"""What is scored, checked before anything is computed: whole, unaltered, its bytes counted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.data.dataset import Dataset
from niblick.errors import ScoreError
from niblick.text.tokenizer import Tokenizer

_PIECE = 1_000_000  # tokens decoded at once


@dataclass(frozen=True)
class Target:
    """Text that passed: tokens (n,), bytes of tokens 1 .. n-1, documents as token ranges.

    `name` says where it is from; `sha256` is of the tokens as little-endian uint16.
    """

    name: str
    tokenizer: Tokenizer
    split: str
    tokens: NDArray[np.uint16]
    counts: NDArray[np.int64]
    documents: list[tuple[int, int]]
    sha256: str


def load_target(dataset: Dataset, split: str, *, vocab_size: int, bos_id: int) -> Target:
    """Read and check `split`.

    `ScoreError` if it is not what its manifest says or not the model's alphabet.
    """
    tokenizer = dataset.tokenizer
    _check_alphabet(tokenizer, vocab_size, bos_id)
    _check_numbering(dataset, split)
    tokens = dataset.tokens(split)
    if len(tokens) < 2:
        raise ScoreError(
            f"split {split!r} has {len(tokens)} tokens; at least 2 are needed to score one"
        )
    counts = tokenizer.byte_table.count(tokens[1:], tokens[:-1])
    sha256 = dataset.sha256(split)
    _check_manifest(dataset, split, len(tokens), sha256)
    _check_bytes(dataset, split, tokens, counts)
    return Target(
        dataset.name, tokenizer, split, tokens, counts, list(dataset.documents(split)), sha256
    )


def text_target(
    name: str, texts: Sequence[str], tokenizer: Tokenizer, *, vocab_size: int, bos_id: int
) -> Target:
    """Documents of plain text in the model's own tokens; `ScoreError` where they hold none."""
    _check_alphabet(tokenizer, vocab_size, bos_id)
    documents = [tokenizer.encode_counted(text) for text in texts]
    tokens = np.concatenate([*documents, np.empty(0, dtype=np.uint16)])
    if len(tokens) < 2:
        raise ScoreError(f"{name!r} holds no text; at least one token is needed to score")
    ends = np.cumsum([len(ids) for ids in documents]).tolist()
    counts = tokenizer.byte_table.count(tokens[1:], tokens[:-1])
    decoded = _decoded(tokenizer, tokens)
    expected = sum(len(text.encode()) for text in texts) if tokenizer.lossless else decoded
    if not int(counts.sum()) == decoded == expected:
        raise ScoreError(
            f"token bytes add up to {int(counts.sum()):,}, the decoded text of {name!r} has"
            f" {decoded:,}, the text itself {expected:,}"
        )
    sha256 = hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()
    spans = list(zip([0, *ends], ends, strict=False))
    return Target(name, tokenizer, "text", tokens, counts, spans, sha256)


def _check_alphabet(tokenizer: Tokenizer, vocab_size: int, bos_id: int) -> None:
    if (tokenizer.vocab_size, tokenizer.bos_id) != (vocab_size, bos_id):
        raise ScoreError(
            f"the data's tokenizer has {tokenizer.vocab_size} ids and BOS {tokenizer.bos_id}; "
            f"the model has {vocab_size} and BOS {bos_id}"
        )


def check_tokenizer(model: Tokenizer | None, dataset: Dataset) -> None:
    """Refuse data that was not written with the model's own tokenizer."""
    theirs = dataset.tokenizer
    if model is not None and model.sha256 != theirs.sha256:
        raise ScoreError(
            f"the data was written with tokenizer {theirs.name} ({theirs.sha256[:12]}), the model"
            f" speaks {model.name} ({model.sha256[:12]}); prepare the text with the model's"
            " tokenizer"
        )


def _check_numbering(dataset: Dataset, split: str) -> None:
    """Shards are numbered from 0 without a gap; a missing one means a truncated split."""
    numbers = [re.search(r"_(\d+)\.bin$", path.name) for path in dataset.shards(split)]
    found = sorted(int(number[1]) for number in numbers if number)
    if found and found != list(range(len(found))):
        missing = min(set(range(found[-1] + 1)) - set(found))
        raise ScoreError(
            f"split {split!r} in {str(dataset.folder)!r} is not whole: shard number {missing} is"
            " missing"
        )


def _check_manifest(dataset: Dataset, split: str, tokens: int, sha256: str) -> None:
    if dataset.manifest is None:
        return
    entry = dataset.manifest.splits[split]
    if tokens != entry.tokens:
        raise ScoreError(
            f"split {split!r} has {tokens:,} tokens; its manifest says {entry.tokens:,}: it is"
            " truncated"
        )
    if sha256 != entry.sha256:
        raise ScoreError(
            f"split {split!r} is not the one its manifest describes: its tokens were altered"
        )


def _check_bytes(
    dataset: Dataset, split: str, tokens: NDArray[np.uint16], counts: NDArray[np.int64]
) -> None:
    """Counted bytes against the decoded text, and against the manifest where nothing is lost."""
    tokenizer, counted = dataset.tokenizer, int(counts.sum())
    decoded = _decoded(tokenizer, tokens)
    if counted != decoded:
        raise ScoreError(
            f"token bytes add up to {counted:,}, the decoded text of {split!r} has {decoded:,}"
        )
    if dataset.manifest is not None and dataset.manifest.lossless:
        expected = dataset.manifest.splits[split].bytes
        if counted != expected:
            raise ScoreError(
                f"token bytes add up to {counted:,}; the manifest of {split!r} counts {expected:,}"
            )


def _decoded(tokenizer: Tokenizer, tokens: NDArray[np.uint16]) -> int:
    """UTF-8 bytes that all tokens but the first add to the decoded text."""
    return sum(
        len(tokenizer.decode_bytes(tokens[start : start + _PIECE], tokens[:start]))
        for start in range(1, len(tokens), _PIECE)
    )
