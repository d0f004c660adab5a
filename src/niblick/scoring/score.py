"""Scores: what an evaluation measured, on what, how, with hashes; a JSON file that other tools only
read.

A score is named by everything that decides it, so that two different measurements never share a
file. A score read from a file is checked: its numbers must be finite and its bits per byte must
follow from its sums. Files of schema 1, which kept split and settings among the details, are read.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.data.splits import ENOUGH
from niblick.errors import DataError, ScoreError
from niblick.files import write_atomically
from niblick.limits import cut
from niblick.scoring.options import Adaptation, LeakyTraining
from niblick.scoring.statistics import block_interval
from niblick.units import LN2

NOT_VALID = "NOT A VALID SCORE"
SCHEMA = 2


@dataclass(frozen=True)
class DocumentSums:
    """Nats, bytes and scored tokens of each document, in the order of the stream.

    A BOS closes the document before it: its nats count there.
    """

    nats: tuple[float, ...]
    bytes: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Score:
    """One measurement. `seconds` is the wall time of scoring and adaptation; hashes are SHA-256 in
    hex, None where unknown.

    `settings` (`EvaluationOptions.settings`), split, mode and hashes decide the numbers; `details`
    tells the rest (names, documents, what was learnt, proof, ...); `documents` serves the paired
    bootstrap.
    """

    schema: int = SCHEMA
    bpb: float
    nats_per_token: float
    tokens: int
    bytes: int
    seconds: float
    mode: str
    split: str = "validation"
    settings: dict[str, Any] = field(default_factory=dict)
    data_sha256: str
    tokenizer_sha256: str | None = None
    artifact_sha256: str | None
    valid: bool
    details: dict[str, Any] = field(default_factory=dict)
    documents: DocumentSums | None = None

    def __repr__(self) -> str:
        valid = "" if self.valid else f", {NOT_VALID}"
        return (
            f"<niblick.Score {self.bpb:.4f} bits per byte: {self.split}, {self.mode},"
            f" {self.tokens:,} tokens, {self.bytes:,} bytes{valid}>"
        )

    @property
    def label(self) -> str:
        """What was scored and how in short, such as `validation-streaming` or
        `test-document-lora`.
        """
        method = (self.settings.get("adaptation") or {}).get("method")
        return "-".join(filter(None, (self.split, self.mode, method)))

    @property
    def kind(self) -> str:
        """Equal for measurements of the same thing, whatever model they are of."""
        return score_kind(asdict(self))

    @property
    def name(self) -> str:
        """A file-name stem that other settings, data or models never share: split, mode, hash."""
        engine = self.settings.get("engine")
        decided = [self.kind, engine, self.tokenizer_sha256, self.artifact_sha256]
        digest = hashlib.sha256(json.dumps(decided).encode()).hexdigest()
        return f"{self.split}-{self.mode}-{digest[:12]}"

    def summary(self) -> dict[str, Any]:
        """The score without its documents, for cards and standard output."""
        return {k: v for k, v in asdict(self).items() if k != "documents"}

    def to_json(self) -> str:
        """One JSON document, per-document sums included."""
        return json.dumps(asdict(self), allow_nan=False)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all; `ScoreError` where that is not possible."""
        try:
            write_atomically(path, [self.to_json().encode() + b"\n"])
        except DataError as error:
            raise ScoreError(f"the score: {error}") from None


def make_score(
    nll: NDArray[np.float32], counts: NDArray[np.int64], spans: list[tuple[int, int]], **fields: Any
) -> Score:
    """Sum up, in float64: `nll` and `counts` hold nats and bytes of tokens 1 .. n-1, `spans` the
    documents. Less than 20 kB of text gets an interval, `details["interval"]`.
    """
    nats, size = float(np.sum(nll, dtype=np.float64)), int(counts.sum())
    if not math.isfinite(nats):
        bad = int(np.flatnonzero(~np.isfinite(nll))[0]) + 1
        raise ScoreError(f"the model gives token {bad} no finite likelihood; nothing can be scored")
    if not size:
        raise ScoreError("the scored tokens hold no bytes at all; bits per byte are undefined")
    interval = block_interval(nll, counts) if size < ENOUGH else None
    if interval is not None:
        fields["details"] = {**fields.get("details", {}), "interval": list(interval)}
    return Score(
        bpb=nats / LN2 / size,
        nats_per_token=nats / len(nll),
        tokens=len(nll),
        bytes=size,
        documents=document_sums(nll, counts, spans),
        **fields,
    )


def document_sums(
    nll: NDArray[np.float32], counts: NDArray[np.int64], spans: list[tuple[int, int]]
) -> DocumentSums:
    """Sums over prediction ranges: the document of tokens [start, end) owns predictions start ..
    end-1.
    """
    n = len(nll)
    ranges = [(start, min(end, n)) for start, end in spans if start < min(end, n)]
    return DocumentSums(
        tuple(float(np.sum(nll[a:b], dtype=np.float64)) for a, b in ranges),
        tuple(int(counts[a:b].sum()) for a, b in ranges),
        tuple(b - a for a, b in ranges),
    )


def score_kind(values: dict[str, Any]) -> str:
    """Split, mode, settings and data of a score as plain values, in one text to be compared.

    The engine is none of them (`without_engine`).
    """
    settings = without_engine(values["settings"])
    kept = (values["split"], values["mode"], settings, values["data_sha256"])
    return json.dumps(kept, sort_keys=True)


def without_engine(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a score depends on: all engines give the same to 1e-4 bits per byte."""
    return {key: value for key, value in settings.items() if key != "engine"}


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A score's values (or a card's, which has them too) in today's schema; others are kept."""
    if "schema" in values:
        return values
    details = values.get("details") or {}
    if not isinstance(details, dict):
        raise TypeError("details must be a table")
    learnt = details.get("adaptation")
    known = {f.name for kind in (Adaptation, LeakyTraining) for f in fields(kind)}
    learnt = learnt if isinstance(learnt, dict) else {}
    settings = {
        "context": details.get("context"),
        "stride": details.get("stride"),
        "precision": details.get("precision"),
        "document": values.get("mode") == "document",
        "adaptation": {key: value for key, value in learnt.items() if key in known} or None,
        "engine": "torch",
    }
    moved = ("split", "adaptation", *settings)
    return {
        **values,
        "schema": SCHEMA,
        "split": details.get("split", "validation"),
        "settings": settings,
        "tokenizer_sha256": None,
        "details": {
            **{key: value for key, value in details.items() if key not in moved},
            "learnt": {key: value for key, value in learnt.items() if key not in known},
        },
    }


def read_score(path: Path) -> Score:
    """A score file, checked; `ScoreError` for anything else."""
    try:
        values = upgraded(json.loads(path.read_text("utf-8")))
        documents = values.pop("documents", None)
        if documents is not None:
            documents = DocumentSums(
                *(tuple(documents[key]) for key in ("nats", "bytes", "tokens"))
            )
        score = Score(**values, documents=documents)
        _check(score)
    except OSError as error:
        raise ScoreError(f"cannot read score {str(path)!r}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ScoreError(
            f"{str(path)!r} is not a score of this project: {cut(error, 120)}"
        ) from None
    return score


def _check(score: Score) -> None:
    if score.schema != SCHEMA:
        raise ValueError(f"schema {score.schema!r} is unknown; this build reads 1 and {SCHEMA}")
    texts = (score.mode, score.split, score.data_sha256)
    hashes = (score.tokenizer_sha256 or "", score.artifact_sha256 or "")
    if not all(isinstance(text, str) for text in texts + hashes):
        raise ValueError("mode, split and hashes must be text")
    numbers = (score.bpb, score.nats_per_token, score.seconds)
    if not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in numbers):
        raise ValueError(f"numbers {numbers} must be finite and not negative")
    for name in ("tokens", "bytes"):
        if not isinstance(getattr(score, name), int) or getattr(score, name) <= 0:
            raise ValueError(f"{name} {getattr(score, name)!r} must be a whole number above 0")
    if (type(score.settings), type(score.details), type(score.valid)) != (dict, dict, bool):
        raise ValueError("settings and details must be tables and valid true or false")
    if type(score.settings.get("adaptation") or {}) is not dict:
        raise ValueError("settings.adaptation must be a table or null")
    expected = score.nats_per_token * score.tokens / LN2 / score.bytes
    if not math.isclose(score.bpb, expected, rel_tol=1e-9, abs_tol=1e-12):
        raise ValueError(f"bpb {score.bpb} does not follow from its sums, which give {expected}")
    if score.documents is not None:
        sums = score.documents
        lengths = {len(sums.nats), len(sums.bytes), len(sums.tokens)}
        if len(lengths) != 1 or sum(sums.bytes) != score.bytes or sum(sums.tokens) != score.tokens:
            raise ValueError("the documents do not add up to the score")
        nats = math.fsum(sums.nats)  # TypeError for what is no number
        if not math.isclose(nats, score.nats_per_token * score.tokens, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(f"the documents' nats add up to {nats}, not to the score's")
