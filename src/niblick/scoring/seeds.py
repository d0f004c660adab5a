"""The card over several seeds: mean, standard deviation and confidence interval of what they
scored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from niblick.files import write_atomically
from niblick.scoring.markup import markdown
from niblick.scoring.statistics import summarise

# What is summarised: how a person calls it, and the digits behind the point.
_FIGURES = {
    "packed_bpb": ("packed bits per byte", 4),
    "float_bpb": ("float bits per byte", 4),
    "nats_per_token": ("nats per token", 4),
    "artifact_bytes": ("artifact bytes", 0),
    "train_seconds": ("training seconds", 0),
    "train_tokens": ("training tokens", 0),
}


def summarise_seeds(cards: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics over the cards of one recipe; `cards` are those of the seeds, in order."""
    figures = {key: [float(card[key]) for card in cards] for key in _FIGURES}
    return {
        "recipe": cards[0]["recipe"],
        "seeds": [card["seed"] for card in cards],
        "valid": all(card["valid"] for card in cards),
        "figures": {
            key: {"values": values, **summarise(values)} for key, values in figures.items()
        },
        "techniques": cards[0]["techniques"],
        "data": cards[0]["data"],
    }


def seeds_markdown(summary: dict[str, Any]) -> str:
    """A table of the figures with one column per seed."""
    seeds = summary["seeds"]
    lines = [f"# {markdown(summary['recipe'])}: {len(seeds)} seeds", ""]
    lines += [
        "| figure | mean | sd | 95 % interval | " + " | ".join(f"seed {s}" for s in seeds) + " |"
    ]
    lines += ["|" + "---|" * (4 + len(seeds))]
    for key, row in summary["figures"].items():
        name, digits = _FIGURES.get(key, (key, 4))
        shown = [f"{value:,.{digits}f}" for value in row["values"]]
        mean, deviation, low, high = (
            "-" if row[each] is None else f"{row[each]:,.{digits}f}"
            for each in ("mean", "sd", "low", "high")
        )
        interval = "-" if row["low"] is None else f"{low} .. {high}"
        lines.append(f"| {name} | {mean} | {deviation} | {interval} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def write_seeds(summary: dict[str, Any], folder: Path) -> None:
    """`card.json` and `card.md` over the seeds, in the folder that holds them."""
    write_atomically(
        folder / "card.json", (json.dumps(summary, indent=1, allow_nan=False).encode() + b"\n",)
    )
    write_atomically(folder / "card.md", (seeds_markdown(summary).encode(),))
