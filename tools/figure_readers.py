"""What a benchmark prints as JSON, as the values of its row in docs/results.json.

A row that has no reader here holds the document as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Table = list[dict[str, Any]]


def packing(document: dict[str, Any]) -> Table:
    """Of `benchmarks/pack.py --json`: what the plot and the table show."""
    kept = ("name", "size", "bits", "bpb", "tax")
    return [{key: row[key] for key in kept} for row in document["rows"]]


def training(document: Table) -> Table:
    """Of `benchmarks/training.py --json`: a row for each recipe, both implementations in it."""
    pairs = zip(document[::2], document[1::2], strict=True)
    return [
        {
            "recipe": ours["recipe"],
            "tokens_per_step": ours["tokens_per_step"],
            "plain": round(plain["tokens_per_second"]),
            "niblick": round(ours["tokens_per_second"]),
            "ratio": round(ours["ratio"], 2),
            "share": round(100 * ours["utilisation"]["bf16"]),
            "plain_mb": round(plain["peak_mb"]),
            "niblick_mb": round(ours["peak_mb"]),
        }
        for plain, ours in pairs
    ]


def decoding(document: dict[str, Any]) -> Table:
    """Of `benchmarks/decode.py --json`: every model and peer at position 1,000."""
    ours = [_decoded(row, row["model"], "niblick", _weights(row)) for row in document["models"]]
    peers = [
        _decoded(row, row["model"].split(" parameters")[0], row["engine"], "random")
        for row in document["peers"]
    ]
    return ours + peers


def _decoded(row: dict[str, Any], model: str, engine: str, weights: str) -> dict[str, Any]:
    ms = [round(cell["ms"], 3) for cell in row["positions"] if cell["position"] == 1000]
    state = f"{row['state_bytes'] / 1e6:.1f} MB"
    told = f"{state}, constant" if engine == "niblick" else "grows"
    found = {"model": model, "engine": engine, "weights": weights, "ms": ms[0]}
    return {**found, "low": min(ms), "high": max(ms), "state": told}


def _weights(row: dict[str, Any]) -> str:
    """A model's widest matrices, and whether they were trained or drawn."""
    packed = Path(row["model"]).exists()
    drawn = "trained and packed" if packed else "random"
    return f"{max(row['bits'])} bits, {drawn}"


def proof(document: dict[str, Any]) -> dict[str, Any]:
    """Of `niblick eval MODEL --prove --json`: the evidence."""
    found = document["details"]["proof"]
    kept = ("cuts", "compared", "distributions", "alphabet", "bytes")
    return {**{key: found[key] for key in kept}, "deviation": found["largest_deviation"]}


READERS: dict[str, Callable[[Any], Any]] = {
    "packing-pocket": packing,
    "packing-27m": packing,
    "proof": proof,
    "training": training,
    "training-second": training,
    "training-tiles": training,
    "decoding": decoding,
    "decoding-packed": decoding,
}
