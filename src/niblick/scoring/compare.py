"""Comparison of runs with statistics, as plain values and as text: the first run is what the others
are held against.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from niblick.scoring.entries import ComparisonError, Entry, check_comparable, differing_settings
from niblick.scoring.markup import plain
from niblick.scoring.score import NOT_VALID
from niblick.scoring.statistics import (
    RECORD_NATS,
    RECORD_P,
    detectable_effect,
    paired_bootstrap,
    record_rule,
    summarise,
    welch,
)

Comparison = dict[str, Any]


def compare(
    entries: Sequence[Entry], *, resamples: int = 10_000, across_settings: bool = False
) -> Comparison:
    """Statistics of each entry, and of each later one against the first; JSON-ready.

    Scores of different settings are no test of the models: `differing` names the settings, and no
    p-value or interval of a difference is taken unless `across_settings` asks for them. Raises
    `ComparisonError` for different data, byte or token counts.
    """
    check_comparable(entries)
    differing = differing_settings(entries)
    tested = across_settings or not differing
    score = entries[0].seeds[0].score
    return {
        "data": {
            "sha256": score.data_sha256,
            "split": score.split,
            "tokens": score.tokens,
            "bytes": score.bytes,
        },
        "valid": all(entry.valid for entry in entries),
        "differing": differing,
        "runs": [_describe(entry) for entry in entries],
        "comparisons": [_against(entry, entries[0], resamples, tested) for entry in entries[1:]],
    }


def _describe(entry: Entry) -> dict[str, Any]:
    sizes = [seed.artifact_bytes for seed in entry.seeds if seed.artifact_bytes is not None]
    seconds = [seed.train_seconds for seed in entry.seeds if seed.train_seconds is not None]
    nats = summarise(entry.nats)
    spread = nats["sd"]
    return {
        "name": entry.name,
        "seeds": [seed.name for seed in entry.seeds],
        "modes": sorted({seed.score.mode for seed in entry.seeds}),
        "settings": entry.seeds[0].score.settings,
        "valid": entry.valid,
        "bpb": {"values": entry.bpb, **summarise(entry.bpb)},
        "nats_per_token": {"values": entry.nats, **nats},
        "detectable_nats": (
            None if spread is None else detectable_effect(spread, nats["n"], spread, nats["n"])
        ),
        "artifact_bytes": max(sizes) if sizes else None,
        "train_seconds": float(np.mean(seconds)) if seconds else None,
    }


def _against(new: Entry, old: Entry, resamples: int, tested: bool) -> dict[str, Any]:
    test = welch(new.nats, old.nats) if tested else None
    record = record_rule(new.nats, old.nats) if tested else None
    spreads = [summarise(entry.nats)["sd"] for entry in (new, old)]
    effect = None
    if None not in spreads:
        effect = detectable_effect(spreads[0], len(new.seeds), spreads[1], len(old.seeds))
    return {
        "new": new.name,
        "old": old.name,
        "bpb_difference": float(np.mean(new.bpb) - np.mean(old.bpb)),
        "nats_difference": float(np.mean(new.nats) - np.mean(old.nats)),
        "bootstrap": bootstrap(new, old, resamples) if tested else None,
        "welch": (
            None
            if test is None
            else {**asdict(test), "t": test.t if abs(test.t) < float("inf") else None}
        ),
        "record": (
            None
            if record is None
            else {**asdict(record), "holds": record.holds and new.valid and old.valid}
        ),
        "detectable_nats": effect,
    }


def bootstrap(new: Entry, old: Entry, resamples: int) -> dict[str, Any] | None:
    """Paired bootstrap over documents, each document's nats averaged over seeds; None without
    documents.
    """
    tables = [document_nats(entry) for entry in (new, old)]
    documents = old.seeds[0].score.documents
    if tables[0] is None or tables[1] is None or documents is None or len(documents.bytes) < 2:
        return None
    for seed in (*new.seeds, *old.seeds):
        if seed.score.documents is None or seed.score.documents.bytes != documents.bytes:
            raise ComparisonError(
                f"{new.name} and {old.name} count the bytes of their documents differently"
            )
    return asdict(paired_bootstrap(tables[0], tables[1], documents.bytes, resamples=resamples))


def document_nats(entry: Entry) -> list[float] | None:
    """Mean nats of each document over the seeds."""
    rows = [seed.score.documents.nats for seed in entry.seeds if seed.score.documents is not None]
    if len(rows) != len(entry.seeds) or len({len(row) for row in rows}) != 1:
        return None
    means: list[float] = np.mean(np.array(rows), axis=0).tolist()
    return means


def comparison_text(
    found: Comparison, recipes: Sequence[Sequence[str]] = (), *, width: int = 1 << 20
) -> str:
    """The tables that `niblick compare` prints, in lines of at most `width`; the last line says in
    words what came out. `recipes` are the rows of `differences.recipe_rows`.
    """
    data, warning = found["data"], warning_text(found)
    lines = [*textwrap.wrap(warning, width), ""] if warning else []
    lines += [
        (
            f"{data['split']}: {data['tokens']:,} tokens, {data['bytes']:,} bytes"
            f" ({data['sha256'][:12]})"
        ),
        "",
    ]
    lines += fitted(run_rows(found), width)
    if recipes:
        lines += ["", *fitted(recipes, width)]
    if found["comparisons"]:
        lines += ["", *fitted(comparison_rows(found), width), ""]
        for row in found["comparisons"]:
            lines += textwrap.wrap(verdict(row), width)
        for row in found["comparisons"]:
            lines += ["", *textwrap.wrap(conclusion(row), width)]
    return "\n".join(lines)


def warning_text(found: Comparison) -> str:
    """What must be said first: scores that are not valid, settings that differ; empty where all is
    well.
    """
    told = [] if found["valid"] else [f"{NOT_VALID} among these: see the runs that are marked"]
    if found["differing"]:
        each = (
            f"{plain(key)} "
            + ", ".join(f"{_values(values)} ({name})" for name, values in by_run.items())
            for key, by_run in found["differing"].items()
        )
        told.append(f"settings differ: {'; '.join(each)}")
    return "; ".join(told)


def _values(values: Sequence[Any]) -> str:
    shown = (
        (value or {}).get("method", value) if isinstance(value, dict) else value for value in values
    )
    return "/".join("-" if value is None else plain(value)[:80] for value in shown)


def run_rows(found: Comparison) -> list[list[str]]:
    """Header and one row per run."""
    rows = [
        [
            "run",
            "seeds",
            "mode",
            "bpb",
            "sd",
            "95 % interval",
            "nats/token",
            "artifact bytes",
            "train s",
            "detectable nats",
        ]
    ]
    for run in found["runs"]:
        bpb = run["bpb"]
        rows.append(
            [
                run["name"] + ("" if run["valid"] else " (not valid)"),
                str(bpb["n"]),
                ", ".join(run["modes"]),
                f"{bpb['mean']:.4f}",
                _shown(bpb["sd"], ".4f"),
                _interval(bpb["low"], bpb["high"]),
                f"{run['nats_per_token']['mean']:.4f}",
                _shown(run["artifact_bytes"], ",.0f"),
                _shown(run["train_seconds"], ",.0f"),
                _shown(run["detectable_nats"], ".4f"),
            ]
        )
    return rows


def comparison_rows(found: Comparison) -> list[list[str]]:
    """Header and one row per run held against the first."""
    rows = [
        [
            "against the first",
            "bpb",
            "95 % over documents",
            "p (documents)",
            "nats/token",
            "p (seeds)",
            "detectable nats",
        ]
    ]
    for row in found["comparisons"]:
        boot, test = row["bootstrap"], row["welch"]
        rows.append(
            [
                row["new"],
                f"{row['bpb_difference']:+.4f}",
                "-" if boot is None else _interval(boot["low"], boot["high"]),
                "-" if boot is None else _small(boot["p"]),
                f"{row['nats_difference']:+.4f}",
                "-" if test is None else _small(test["p_two"]),
                _shown(row["detectable_nats"], ".4f"),
            ]
        )
    return rows


def verdict(row: dict[str, Any]) -> str:
    """One sentence on the record rule."""
    record = row["record"]
    if record is None:
        return (
            f"{row['new']}: other settings than {row['old']}'s, so no test; --across-settings asks"
            " for one"
        )
    moved = f"{'gains' if record['gain'] >= 0 else 'loses'} {abs(record['gain']):.4f} nats"
    rule = f">= {RECORD_NATS} nats at p < {RECORD_P}"
    if record["p"] is None:
        return f"{row['new']}: {moved}; the record rule ({rule}) needs two seeds or more of each"
    outcome = "holds" if record["holds"] else "does not hold"
    return f"{row['new']}: {moved}, p = {record['p']:.2g}; the record rule ({rule}) {outcome}"


_CERTAIN = 0.05


def conclusion(row: dict[str, Any]) -> str:
    """What the tests say together, in one sentence; also where documents and seeds disagree."""
    new, old = row["new"], row["old"]
    boot, test = row["bootstrap"], row["welch"]
    documents, seeds = boot and boot["p"], test and test["p_two"]
    better = "better" if row["bpb_difference"] < 0 else "worse"
    if documents is None and seeds is None:
        return f"Whether {new} is {better} than {old} by more than chance cannot be said from this."
    if seeds is None:
        if documents >= _CERTAIN:
            return f"Between these two files of {new} and {old} no difference is certain."
        return (
            f"This file of {new} is {better} than that of {old} over the documents"
            f" ({_p(documents)}); whether its recipe is takes two seeds or more of each."
        )
    if documents is None:
        sure = "certainly" if seeds < _CERTAIN else "not certainly"
        return f"Over its seeds, {new} is {sure} {better} than {old} ({_p(seeds)})."
    told = f"over the documents ({_p(documents)})", f"over the seeds ({_p(seeds)})"
    if documents < _CERTAIN and seeds < _CERTAIN:
        return f"{new} is {better} than {old}, {told[0]} and {told[1]}."
    if documents < _CERTAIN:
        return (
            f"These very models of {new} are {better} than those of {old} {told[0]}, but not"
            f" certainly {told[1]}: other seeds may turn it round, so train more of them."
        )
    if seeds < _CERTAIN:
        return (
            f"{new} is {better} than {old} {told[1]}, but not certainly {told[0]}: on other text it"
            " may be otherwise, so score more of it."
        )
    return f"No difference between {new} and {old} is certain, {told[0]} or {told[1]}."


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _small(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def fitted(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A table of at most `width` columns: as it is, else turned on its side, else a block for each
    row.
    """
    for form in (rows, list(zip(*rows, strict=True))):
        lines = table(form)
        if max(map(len, lines)) <= width:
            return lines
    head, *rest = rows
    lines = []
    for row in rest:
        pairs = [[f"  {name}", value] for name, value in zip(head[1:], row[1:], strict=True)]
        lines += [row[0], *table(pairs)]
    return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(low: float | None, high: float | None) -> str:
    return (
        "-"
        if low is None or high is None
        else f"{low:+.4f} .. {high:+.4f}"
        if low < 0
        else f"{low:.4f} .. {high:.4f}"
    )
