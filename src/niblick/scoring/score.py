"""Scores: what an evaluation measured, on what, how, with hashes; a JSON file that other tools only
read.

A score read from a file is checked: its numbers must be finite and its bits per byte must follow
from its sums.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.errors import ScoreError
from niblick.objective.likelihood import LN2

NOT_VALID = "NOT A VALID SCORE"


@dataclass(frozen=True)
class DocumentSums:
    """Nats, bytes and scored tokens of each document, in the order of the stream.

    A BOS closes the document before it: its nats count there.
    """

    nats: tuple[float, ...]
    bytes: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measurement. `seconds` is the wall time of scoring and adaptation; hashes are SHA-256 in
    hex.

    `details` says how (context, stride, split, adaptation, proof, ...); `documents` serves the
    paired bootstrap.
    """

    bpb: float
    nats_per_token: float
    tokens: int
    bytes: int
    seconds: float
    mode: str
    data_sha256: str
    artifact_sha256: str | None
    valid: bool
    details: dict[str, Any] = field(default_factory=dict)
    documents: DocumentSums | None = None

    @property
    def split(self) -> str:
        """The split that was scored."""
        return str(self.details.get("split", "validation"))

    @property
    def label(self) -> str:
        """A file-name stem such as `validation-streaming` or `test-document-lora`."""
        method = (self.details.get("adaptation") or {}).get("method")
        return "-".join(filter(None, (self.split, self.mode, method)))

    def summary(self) -> dict[str, Any]:
        """The score without its documents, for cards and standard output."""
        return {k: v for k, v in asdict(self).items() if k != "documents"}

    def to_json(self) -> str:
        """One JSON document, per-document sums included."""
        return json.dumps(asdict(self), allow_nan=False)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all; `ScoreError` where that is not possible."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(self.to_json() + "\n", "utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ScoreError(f"cannot write the score to {str(path)!r}: {error.strerror}") from None


def make_score(
    nll: NDArray[np.float32], counts: NDArray[np.int64], spans: list[tuple[int, int]], **fields: Any
) -> Score:
    """Sum up, in float64: `nll` and `counts` hold nats and bytes of tokens 1 .. n-1, `spans` the
    documents.
    """
    nats, size = float(np.sum(nll, dtype=np.float64)), int(counts.sum())
    if not math.isfinite(nats):
        bad = int(np.flatnonzero(~np.isfinite(nll))[0]) + 1
        raise ScoreError(f"the model gives token {bad} no finite likelihood; nothing can be scored")
    if not size:
        raise ScoreError("the scored tokens hold no bytes at all; bits per byte are undefined")
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


def read_score(path: Path) -> Score:
    """A score file, checked; `ScoreError` for anything else."""
    try:
        values = json.loads(path.read_text("utf-8"))
        documents = values.pop("documents", None)
        if documents is not None:
            documents = DocumentSums(
                *(tuple(documents[key]) for key in ("nats", "bytes", "tokens"))
            )
        score = Score(**values, documents=documents)
        _check(score)
    except OSError as error:
        raise ScoreError(f"cannot read score {str(path)!r}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScoreError(f"{str(path)!r} is not a score of this project: {error}") from None
    return score


def _check(score: Score) -> None:
    numbers = (score.bpb, score.nats_per_token, score.seconds)
    if not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in numbers):
        raise ValueError(f"numbers {numbers} must be finite and not negative")
    for name in ("tokens", "bytes"):
        if not isinstance(getattr(score, name), int) or getattr(score, name) <= 0:
            raise ValueError(f"{name} {getattr(score, name)!r} must be a whole number above 0")
    if (type(score.details), type(score.valid)) != (dict, bool):
        raise ValueError("details must be a table and valid true or false")
    expected = score.nats_per_token * score.tokens / LN2 / score.bytes
    if not math.isclose(score.bpb, expected, rel_tol=1e-9, abs_tol=1e-12):
        raise ValueError(f"bpb {score.bpb} does not follow from its sums, which give {expected}")
    if score.documents is not None:
        sums = score.documents
        lengths = {len(sums.nats), len(sums.bytes), len(sums.tokens)}
        if len(lengths) != 1 or sum(sums.bytes) != score.bytes or sum(sums.tokens) != score.tokens:
            raise ValueError("the documents do not add up to the score")
