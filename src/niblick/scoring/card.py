"""The record card of a run: generated from the recipe and the measured results, never typed
(systems.md section 5).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from niblick.files import write_atomically
from niblick.plan import Plan
from niblick.recipe import Recipe
from niblick.scoring.markup import markdown
from niblick.scoring.score import NOT_VALID, Score
from niblick.scoring.techniques import new_techniques, rounds_late, techniques

Card = dict[str, Any]


def make_card(
    recipe: Recipe,
    plan: Plan,
    *,
    floating: Score,
    packed: Score,
    artifact: dict[str, Any],
    training: dict[str, Any],
    data: dict[str, Any],
    baselines: dict[str, float],
    environment: dict[str, Any],
) -> Card:
    """One JSON-ready card: the packed score's keys, the run's, the techniques and the baselines.

    `artifact`: `bytes`, `ledger`, `choice`; `training`: `seconds`, `tokens`, `steps`, `passes`;
    `data`: `corpus`, `attribution`, `tokenizer`, `lossless`.
    """
    return {
        **packed.summary(),
        "recipe": recipe.name,
        "description": recipe.description,
        "seed": recipe.seed,
        "parameters": plan.parameter_count,
        "flops_per_token": plan.flops_per_token,
        "decode_state_bytes": plan.decode_state_bytes(),
        "artifact_bytes": artifact["bytes"],
        "max_bytes": recipe.artifact.max_bytes,
        "bits_per_parameter": 8 * artifact["bytes"] / plan.parameter_count,
        "train_seconds": training["seconds"],
        "train_tokens": training["tokens"],
        "train_steps": training["steps"],
        "passes": training.get("passes"),
        "compiled": training.get("compiled"),
        "precision": training.get("precision"),
        "calibration": training.get("calibration"),
        "float_bpb": floating.bpb,
        "packed_bpb": packed.bpb,
        "tax_bpb": packed.bpb - floating.bpb,
        "qat": _qat(recipe),
        "techniques": techniques(recipe, plan),
        "new": new_techniques(recipe, plan),
        "baselines": baselines,
        "data": data,
        "ledger": artifact["ledger"],
        "packing": artifact["choice"],
        "environment": environment,
        "scores": [],
    }


def _qat(recipe: Recipe) -> str | None:
    """How training rounded, against how the codec rounds; None without quantization-aware
    training.
    """
    return "rounds exactly as the codec does" if rounds_late(recipe) else None


def add_score(card: Card, score: Score) -> Card:
    """The card with one more score of the same artifact listed (another split or mode)."""
    return {**card, "scores": [*card["scores"], score.summary()]}


def write_card(card: Card, folder: Path) -> None:
    """`card.json` and `card.md` in `folder`, each whole or not at all."""
    write_atomically(
        folder / "card.json", (json.dumps(card, indent=1, allow_nan=False).encode() + b"\n",)
    )
    write_atomically(folder / "card.md", (card_markdown(card).encode(),))


def card_markdown(card: Card) -> str:
    """The card as Markdown; a score that is not valid says so in the first line."""
    lines = (
        []
        if card["valid"]
        else [f"**{NOT_VALID}**: {markdown(card['details'].get('reason', 'see details'))}", ""]
    )
    lines += [
        (
            f"# {markdown(card['recipe'])}: {card['packed_bpb']:.4f} bits per byte in"
            f" {card['artifact_bytes']:,} bytes"
        ),
        "",
    ]
    if card["description"]:
        lines += [markdown(card["description"]), ""]
    lines += [
        "| measure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(card)),
        "",
    ]
    lines += _score_rows(card) + _baseline_rows(card)
    lines += ["## Techniques", ""]
    for group, entries in card["techniques"].items():
        lines += [f"- **{group}**: " + "; ".join(_technique(entry) for entry in entries)]
    if card["new"]:
        lines += [
            "",
            "New against the published models: "
            + ", ".join(markdown(name) for name in card["new"])
            + ".",
        ]
    lines += ["", *_ledger_rows(card["ledger"])]
    if card["data"].get("attribution"):
        lines += [markdown(card["data"]["attribution"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _facts(card: Card) -> list[tuple[str, str]]:
    details, data = card["details"], card["data"]
    lossy = "" if data.get("lossless", True) else " (lossy)"
    passes = f", {card['passes']:.2f} passes" if card["passes"] else ""
    return [
        (
            "packed bpb",
            f"**{card['packed_bpb']:.4f}** ({card['nats_per_token']:.4f} nats per token)",
        ),
        ("float bpb", f"{card['float_bpb']:.4f} (packing costs {card['tax_bpb']:+.4f})"),
        ("artifact", f"{card['artifact_bytes']:,} of {card['max_bytes']:,} bytes"),
        (
            "parameters",
            f"{card['parameters']:,} at {card['bits_per_parameter']:.2f} bits, all bytes counted",
        ),
        (
            "training",
            (
                f"{card['train_seconds']:.0f} s, {card['train_steps']:,} steps, "
                f"{card['train_tokens']:,} tokens{passes}, seed {card['seed']}"
            ),
        ),
        (
            "scored",
            (
                f"{card['tokens']:,} tokens, {card['bytes']:,} bytes of {markdown(data['corpus'])}"
                f" {markdown(details.get('split', 'validation'))} in {card['seconds']:.1f} s,"
                f" {card['mode']}, context {details.get('context')}"
            ),
        ),
        ("tokenizer", f"{markdown(data['tokenizer'])}{lossy}"),
        (
            "forward cost",
            (
                f"{card['flops_per_token']:,} FLOPs per token; decode state"
                f" {card['decode_state_bytes']:,} bytes"
            ),
        ),
        (
            "machine",
            markdown(
                f"{card['environment'].get('processor')}, torch {card['environment'].get('torch')}"
            ),
        ),
        *_optional_facts(card),
    ]


def _optional_facts(card: Card) -> list[tuple[str, str]]:
    found = []
    if card.get("compiled") is not None:
        form = "compiled" if card["compiled"] else "plain, which is slower"
        found.append(("training ran", f"{form}, in {card['precision']}"))
    calibration = card.get("calibration")
    if calibration and calibration["sequences"] < calibration["planned"]:
        used, planned = calibration["sequences"], calibration["planned"]
        found.append(("calibration", f"shortened to {used} of {planned} sequences by the budget"))
    if card.get("qat"):
        found.append(("late QAT", markdown(card["qat"])))
    if card["packing"]:
        found.append(
            (
                "packing",
                "; ".join(
                    f"{markdown(k.replace('_', ' '))} {markdown(v)}"
                    for k, v in card["packing"].items()
                ),
            )
        )
    if card["details"].get("proof"):
        from niblick.scoring.score_text import proof_text

        found.append(("proof", markdown(proof_text(card["details"]["proof"]))))
    return found


def _score_rows(card: Card) -> list[str]:
    if not card["scores"]:
        return []
    rows = [
        f"| {markdown(s['details'].get('split'))} | {markdown(s['mode'])} | {s['bpb']:.4f} |"
        f" {s['seconds']:.1f} |"
        for s in card["scores"]
    ]
    return ["| other scores of this file | mode | bpb | seconds |", "|---|---|---|---|", *rows, ""]


def _baseline_rows(card: Card) -> list[str]:
    if not card["baselines"]:
        return []
    rows = [f"| {markdown(name)} | {bpb:.4f} |" for name, bpb in card["baselines"].items()]
    return [
        "| compressor primed with the training text | bpb |",
        "|---|---|",
        *rows,
        f"| **this model** | **{card['packed_bpb']:.4f}** |",
        "",
    ]


def _ledger_rows(ledger: dict[str, Any]) -> list[str]:
    total = max(ledger["total"], 1)
    rows = [
        f"| {markdown(part)} | {size:,} | {100 * size / total:.1f} % |"
        for part, size in ledger["parts"].items()
        if size
    ]
    return [
        "| part of the file | bytes | share |",
        "|---|---|---|",
        *rows,
        f"| total | {ledger['total']:,} | |",
        "",
    ]


def _technique(entry: dict[str, Any]) -> str:
    values = ", ".join(
        f"{key.replace('_', ' ')} {_value(value)}" for key, value in entry.items() if key != "name"
    )
    return markdown(entry["name"]) + (f" ({markdown(values)})" if values else "")


def _value(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
