"""What variants of a recipe are worth: paired differences of bits per byte against the baseline,
and the rule that stops a variant which is behind.

Runs with the same seed draw the same batches, so differences are taken seed by seed. Their scatter
is pooled over variants. A variant is behind where its mean difference to a rival exceeds what that
scatter allows at 95 % (Student's t, two-sided); without two seeds of two rivals nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from niblick.scoring.markup import markdown
from niblick.scoring.statistics import paired_difference, summarise, t_quantile

BASELINE = "baseline"
_CONFIDENCE = 0.975
Values = Mapping[str, Mapping[int, float]]  # variant -> seed -> bits per byte
Sweep = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run as its folder tells it; `bpb` is None until it is finished.

    `curve` maps the number of a validation (1, 2, ...) to its bits per byte. `stopped` is the share
    of the budget at which the run was given up. `artifact_bytes` is None where nothing was packed.
    """

    seed: int
    bpb: float | None
    parameters: int
    artifact_bytes: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    valid: bool = True
    curve: Mapping[int, float] = field(default_factory=dict)
    stopped: float | None = None


Trials = Mapping[str, Sequence[Trial]]


def final_values(trials: Trials) -> Values:
    """The scores of finished runs."""
    return {
        name: {run.seed: run.bpb for run in runs if run.bpb is not None}
        for name, runs in trials.items()
    }


def curve_values(trials: Trials, number: int) -> Values:
    """What validation `number` of each run found, where the run came so far."""
    return {
        name: {run.seed: run.curve[number] for run in runs if number in run.curve}
        for name, runs in trials.items()
    }


def scatter(values: Values) -> tuple[float, int] | None:
    """Standard deviation of paired differences between two variants, pooled, and its degrees of
    freedom; None without two seeds of two variants.
    """
    base = next(iter(values.values()), {})
    squares, freedom = 0.0, 0
    for found in list(values.values())[1:]:
        gaps = [found[seed] - base[seed] for seed in found if seed in base]
        if len(gaps) > 1:
            squares += float(np.var(gaps)) * len(gaps)
            freedom += len(gaps) - 1
    return (sqrt(squares / freedom), freedom) if freedom else None


def is_behind(values: Values, name: str) -> bool:
    """Whether variant `name` is behind some rival by more than the rivals' scatter explains.

    The baseline never is: all others are held against it.
    """
    rivals = {rival: found for rival, found in values.items() if rival != name}
    spread = scatter(rivals)
    if name == BASELINE or spread is None:
        return False
    own, limit = values.get(name, {}), spread[0] * t_quantile(_CONFIDENCE, spread[1])
    for found in rivals.values():
        gaps = [own[seed] - found[seed] for seed in own if seed in found]
        if gaps and float(np.mean(gaps)) > limit / sqrt(len(gaps)):
            return True
    return False


def summarise_sweep(
    recipe: str, trials: Trials, *, settings: Mapping[str, Any], notes: Mapping[str, str]
) -> Sweep:
    """One JSON-ready row per variant, the baseline first; `settings` say what all runs share, and
    `notes` what became of a variant that has not run all its seeds.

    A difference is variant minus baseline over the seeds that both have: negative is better.
    """
    values = final_values(trials)
    spread = scatter(values)
    return {
        "recipe": recipe,
        **settings,
        "complete": not notes,
        "valid": all(run.valid for runs in trials.values() for run in runs),
        "scatter": None if spread is None else {"sd": spread[0], "freedom": spread[1]},
        "variants": [
            _row(name, runs, values, notes.get(name, "")) for name, runs in trials.items()
        ],
    }


def _row(name: str, runs: Sequence[Trial], values: Values, note: str) -> dict[str, Any]:
    done = [run for run in runs if run.bpb is not None]
    own, base = values[name], values[BASELINE]
    gaps = [own[seed] - base[seed] for seed in own if seed in base]
    sizes = [run.artifact_bytes for run in done if run.artifact_bytes is not None]
    return {
        "variant": name,
        "parameters": runs[0].parameters,
        "artifact_bytes": float(np.mean(sizes)) if sizes else None,
        "seeds": [run.seed for run in done],
        "bpb": {"values": list(own.values()), **summarise(list(own.values()))} if done else None,
        "tokens": float(np.mean([run.tokens for run in done])) if done else None,
        "seconds": float(np.mean([run.seconds for run in done])) if done else None,
        "difference": paired_difference(gaps) if gaps and name != BASELINE else None,
        "note": note,
    }


def sweep_markdown(found: Sweep) -> str:
    """The table, one row per variant, and what is to be known of it."""
    lines = [
        f"# {markdown(found['recipe'])}: {len(found['variants']) - 1} variants",
        "",
        "| variant | parameters | file | tokens | seeds | bpb | difference | 95 % interval | p | |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(row))} |" for row in found["variants"]),
        "",
        f"{found['score']} weights, {found['split']} split, {found['duration']} each. A difference"
        " is variant minus baseline over common seeds (negative: the variant is better); interval"
        " and p are those of the paired t-test.",
    ]
    if found["scatter"] is not None:
        spread = found["scatter"]
        lines.append(
            f"Scatter of a paired difference, pooled: {spread['sd']:.4f} ({spread['freedom']}"
            " degrees of freedom)."
        )
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    change, score, size = row["difference"], row["bpb"], row["artifact_bytes"]
    interval = p = "-"
    if change is not None and change["p"] is not None:
        interval = f"{change['low']:+.4f} .. {change['high']:+.4f}"
        p = f"{change['p']:.3f}" if change["p"] >= 0.0005 else "< 0.001"
    return [
        markdown(row["variant"]),
        f"{row['parameters']:,}",
        "-" if size is None else f"{size:,.0f} B",
        "-" if row["tokens"] is None else f"{row['tokens']:,.0f}",
        str(len(row["seeds"])),
        "-" if score is None else f"{score['mean']:.4f}",
        "-" if change is None else f"{change['mean']:+.4f}",
        interval,
        p,
        markdown(row["note"]),
    ]
