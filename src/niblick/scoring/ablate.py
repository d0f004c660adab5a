"""What leaving a technique out changes: differences of bits per byte against the whole recipe, with
intervals.

Means over seeds; the interval of a difference is Welch's 95 % t interval, None with fewer than two
seeds.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from niblick.scoring.markup import markdown
from niblick.scoring.statistics import summarise, t_quantile, welch

BASELINE = "baseline"
Cards = list[dict[str, Any]]
Ablation = dict[str, Any]


def summarise_ablation(recipe: str, cards: dict[str, Cards]) -> Ablation:
    """One JSON-ready row per variant; `cards` maps its name to its runs' cards, "baseline" among
    them.

    A positive difference means that the recipe is better with the technique than without it.
    """
    base = cards[BASELINE]
    return {
        "recipe": recipe,
        "seeds": [card["seed"] for card in base],
        "valid": all(card["valid"] for runs in cards.values() for card in runs),
        "variants": [_row(name, runs, base) for name, runs in cards.items()],
    }


def difference_interval(a: list[float], b: list[float], confidence: float = 0.95) -> dict[str, Any]:
    """Mean of a minus mean of b with Welch's interval and two-sided p; None where one seed allows
    none.
    """
    mean = float(np.mean(a) - np.mean(b))
    test = welch(a, b)
    if test is None:
        return {"mean": mean, "low": None, "high": None, "p": None}
    error = sqrt(float(np.var(a, ddof=1)) / len(a) + float(np.var(b, ddof=1)) / len(b))
    half = t_quantile((1 + confidence) / 2, test.df) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": test.p_two}


def ablation_markdown(found: Ablation) -> str:
    """The table, one row per variant, the whole recipe first."""
    lines = [f"# What {markdown(found['recipe'])} loses without each technique", ""]
    lines += [
        "| variant | parameters | file | bpb | difference | 95 % interval | p |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in ablation_cells(found)]
    lines += [
        "",
        f"{len(found['seeds'])} seed(s) each; a positive difference speaks for the technique.",
    ]
    return "\n".join(lines) + "\n"


def ablation_cells(found: Ablation) -> list[list[str]]:
    """The table's cells as text."""
    rows = []
    for row in found["variants"]:
        change = row["difference"]
        interval = p = "-"
        if change is not None and change["low"] is not None:
            interval, p = f"{change['low']:+.4f} .. {change['high']:+.4f}", f"{change['p']:.3f}"
        rows.append(
            [
                markdown(row["variant"]),
                f"{row['parameters']:,}",
                f"{row['artifact_bytes']:,.0f} B",
                f"{row['bpb']['mean']:.4f}",
                "-" if change is None else f"{change['mean']:+.4f}",
                interval,
                p,
            ]
        )
    return rows


def _row(name: str, runs: Cards, base: Cards) -> dict[str, Any]:
    scores = {
        key: [float(card[key]) for card in runs]
        for key in ("packed_bpb", "float_bpb", "train_tokens")
    }
    wanted = [float(card["packed_bpb"]) for card in base]
    return {
        "variant": name,
        "parameters": runs[0]["parameters"],
        "artifact_bytes": float(np.mean([card["artifact_bytes"] for card in runs])),
        "bpb": {"values": scores["packed_bpb"], **summarise(scores["packed_bpb"])},
        "float_bpb": summarise(scores["float_bpb"])["mean"],
        "train_tokens": summarise(scores["train_tokens"])["mean"],
        "difference": (
            None if name == BASELINE else difference_interval(scores["packed_bpb"], wanted)
        ),
    }
