"""The record card of a run: generated from the recipe and the measured results, never typed
(systems.md section 5).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from niblick.codecs.base import noisy
from niblick.errors import ScoreError
from niblick.files import locked, write_atomically
from niblick.plan import Plan
from niblick.recipe import Recipe, changed
from niblick.scoring.markup import markdown
from niblick.scoring.score import NOT_VALID, Score, upgraded
from niblick.scoring.techniques import new_techniques, rounds_late, techniques
from niblick.scoring.wording import packing_text, setting_text

Card = dict[str, Any]
LEAST = 5_000  # bytes of held-out text, below which a card shows no score


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

    `artifact`: `bytes`, `ledger`, `choice`; `training`: `seconds`, `tokens`, `steps`, `passes`,
    `init_from` (`model`, `sha256`);
    `data`: `corpus`, `attribution`, `tokenizer`, `lossless`, `own` (a text of the user's).
    Of less than 5 kB of held-out text the score is not valid.
    """
    summary, trained = packed.summary(), _as_trained(recipe, training)
    if packed.valid and packed.bytes < LEAST:
        reason = f"{packed.bytes:,} bytes of held-out text are too few; {LEAST:,} are needed"
        details = {**packed.details, "reason": reason, "too_short": True}
        summary |= {"valid": False, "details": details}
    return {
        **summary,
        "recipe": recipe.name,
        "description": _description(recipe, plan, training, data),
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
        "init_from": training.get("init_from"),
        "float_bpb": floating.bpb,
        "packed_bpb": packed.bpb,
        "tax_bpb": packed.bpb - floating.bpb,
        "qat": _qat(recipe, training),
        "techniques": techniques(trained, plan),
        "new": new_techniques(trained, plan),
        "baselines": baselines,
        "data": data,
        "ledger": artifact["ledger"],
        "packing": artifact["choice"],
        "environment": environment,
        "scores": [],
    }


def _description(recipe: Recipe, plan: Plan, training: dict[str, Any], data: dict[str, Any]) -> str:
    """One sentence on the run that was made."""
    size = f" ({data['train_bytes']:,} bytes)" if data.get("train_bytes") else ""
    shape = f"{plan.depth} layers of width {recipe.model.dim}"
    start = f" from {training['init_from']['model']}" if training.get("init_from") else ""
    work = f"trained{start} on {data['corpus']}{size} for {training['seconds']:.0f} s"
    return f"{shape}, {work}, packed into at most {recipe.artifact.max_bytes:,} bytes."


def too_short(card: Card) -> bool:
    """Whether the held-out text is too little for the card to show a score."""
    return bool(card["details"].get("too_short"))


def interval_text(details: dict[str, Any]) -> str:
    """In brackets, the interval of a score of little text; else nothing."""
    interval = details.get("interval")
    return f" (95 % interval {interval[0]:.3f} .. {interval[1]:.3f})" if interval else ""


def _qat(recipe: Recipe, training: dict[str, Any]) -> str | None:
    """How training rounded, against how the codec rounds; None without quantization-aware
    training.
    """
    least = recipe.training.qat.min_passes
    if not rounds_late(recipe):
        return None
    if training.get("rounded", True):
        noise = noisy(recipe)
        return "under the codec's errors as noise" if noise else "rounds exactly as the codec does"
    if (training.get("passes") or least) < least:
        return f"left out; it pays from {least:g} passes on"
    return "asked for; the time was too short"


def _as_trained(recipe: Recipe, training: dict[str, Any]) -> Recipe:
    """The recipe without late QAT, where that was left out."""
    if training.get("rounded", True):
        return recipe
    return changed(recipe, {"training.qat.enabled": False})


def change_card(folder: Path, change: Callable[[Card | None], Card | None]) -> None:
    """Replace the card of the run in `folder` by what `change` makes of it, in today's schema.

    `change` gets None where there is no card yet, and returns None to leave it. Who else changes
    the card at the same time waits, so nothing is lost.
    """
    try:
        with locked(folder / ".card.lock"):
            card = change(read_card(folder / "card.json"))
            if card is not None:
                _write(card, folder)
    except OSError as error:
        raise ScoreError(f"cannot change the card of {str(folder)!r}: {error.strerror}") from None


def write_card(card: Card, folder: Path) -> None:
    """Make `card` the card of the run in `folder`; other scores of the same artifact that its old
    card lists stay listed.
    """

    def merged(old: Card | None) -> Card:
        same = old is not None and old.get("artifact_sha256") == card["artifact_sha256"]
        return {**card, "scores": old["scores"]} if old is not None and same else card

    change_card(folder, merged)


def read_card(path: Path) -> Card | None:
    """A run's card; None where there is none, or none that can be read."""
    try:
        card = upgraded(json.loads(path.read_text("utf-8")))
        return {**card, "scores": [upgraded(entry) for entry in card["scores"]]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _write(card: Card, folder: Path) -> None:
    """`card.json` and `card.md`, each whole or not at all."""
    write_atomically(
        folder / "card.json", (json.dumps(card, indent=1, allow_nan=False).encode() + b"\n",)
    )
    write_atomically(folder / "card.md", (card_markdown(card).encode(),))


def card_markdown(card: Card) -> str:
    """The card as Markdown; a score that is not valid says so in the first line."""
    card = upgraded(card)
    reason, lines = markdown(card["details"].get("reason", "see details")), list[str]()
    score = f"{card['packed_bpb']:.4f} bits per byte in"
    if too_short(card):
        score = "no score;"
    elif not card["valid"]:
        lines = [f"**{NOT_VALID}**: {reason}", ""]
    lines += [f"# {markdown(card['recipe'])}: {score} {card['artifact_bytes']:,} bytes", ""]
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
    if card["data"].get("own"):
        lines += [
            "**Private text?** A model can repeat passages of what it was trained on, word for"
            f" word: share this file only where you may share {markdown(card['data']['corpus'])}.",
            "",
        ]
    if card["data"].get("attribution"):
        lines += [markdown(card["data"]["attribution"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _facts(card: Card) -> list[tuple[str, str]]:
    data = card["data"]
    lossy = "" if data.get("lossless", True) else " (lossy)"
    passes = f", {card['passes']:.2f} passes" if card["passes"] else ""
    return [
        *_scored(card),
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
                f" {markdown(card['split'])} in {card['seconds']:.1f} s,"
                f" {card['mode']}, context {card['settings'].get('context')}"
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


def _scored(card: Card) -> list[tuple[str, str]]:
    """The headline, or why there is none."""
    if too_short(card):
        return [("score", f"none: {markdown(card['details'].get('reason'))}")]
    nats, interval = f"{card['nats_per_token']:.4f} nats per token", interval_text(card["details"])
    return [
        ("packed bpb", f"**{card['packed_bpb']:.4f}**{interval} ({nats})"),
        ("float bpb", f"{card['float_bpb']:.4f} (packing costs {card['tax_bpb']:+.4f})"),
    ]


def _optional_facts(card: Card) -> list[tuple[str, str]]:
    found = []
    if card.get("compiled") is not None:
        form = "compiled" if card["compiled"] else "plain, which is slower"
        found.append(("training ran", f"{form}, in {card['precision']}"))
    if card.get("init_from"):
        start = card["init_from"]
        found.append(("started from", f"{markdown(start['model'])} (`{start['sha256'][:12]}`)"))
    calibration = card.get("calibration")
    if calibration and calibration["sequences"] < calibration["planned"]:
        used, planned = calibration["sequences"], calibration["planned"]
        found.append(("calibration", f"shortened to {used} of {planned} sequences by the budget"))
    if card.get("qat"):
        found.append(("late QAT", markdown(card["qat"])))
    if card["packing"]:
        found.append(("packing", markdown(packing_text(card["packing"]))))
    if card["details"].get("proof"):
        from niblick.scoring.score_text import proof_text

        found.append(("proof", markdown(proof_text(card["details"]["proof"]))))
    return found


def _score_rows(card: Card) -> list[str]:
    if not card["scores"]:
        return []
    rows = [
        f"| {markdown(s['split'])} | {markdown(s['mode'])} | {_otherwise(s, card)} |"
        f" {s['bpb']:.4f} | {s['seconds']:.1f} |"
        for s in map(upgraded, card["scores"])
    ]
    return [
        "| other scores of this file | mode | different | bpb | seconds |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _otherwise(score: dict[str, Any], card: Card) -> str:
    """What of a listed score's data and settings is not the headline's."""
    found = []
    if score["split"] == card["split"] and score["data_sha256"] != card["data_sha256"]:
        found.append(f"data {score['details'].get('data')} ({score['data_sha256'][:12]})")
    found += [
        f"{key} {(value or {}).get('method') if key == 'adaptation' else value}"
        for key, value in score["settings"].items()
        if key != "document" and value is not None and value != card["settings"].get(key)
    ]
    return markdown(", ".join(found)) or "-"


def _baseline_rows(card: Card) -> list[str]:
    if not card["baselines"] or too_short(card):
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
    values = ", ".join(setting_text(key, value) for key, value in entry.items() if key != "name")
    return markdown(entry["name"]) + (f" ({markdown(values)})" if values else "")
