"""A Score as a few lines of plain text, and on the card of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from niblick.files import write_atomically
from niblick.scoring.card import Card, add_score, card_markdown, write_card
from niblick.scoring.score import NOT_VALID, Score


def score_text(score: Score) -> str:
    """What `niblick eval` prints; an invalid score says so in its first line."""
    details = score.details
    lines = [] if score.valid else [f"{NOT_VALID}: {details.get('reason', 'see details')}"]
    lines += [
        f"bits per byte     {score.bpb:.6f}",
        f"nats per token    {score.nats_per_token:.6f}",
        (
            f"scored            {score.tokens:,} tokens, {score.bytes:,} bytes,"
            f" {details.get('documents', 0):,} documents"
        ),
        f"data              {details.get('data')} {score.split} ({score.data_sha256[:12]})",
        (
            "tokenizer        "
            f" {details.get('tokenizer')}{'' if details.get('lossless', True) else ' (lossy)'}"
        ),
        f"mode              {_mode(score)}",
        (
            f"seconds           {score.seconds:.2f} ({score.tokens / max(score.seconds, 1e-9):,.0f}"
            " tokens/s)"
        ),
    ]
    if details.get("adaptation"):
        lines.append(f"adaptation        {_adaptation(details['adaptation'])}")
    if details.get("proof"):
        lines.append(f"proof             {proof_text(details['proof'])}")
    return "\n".join(lines)


def proof_text(proof: dict[str, Any]) -> str:
    """The evidence of a proof in one line."""
    return (
        f"{proof['cuts']} cuts over {proof['tokens']:,} tokens: {proof['compared']:,} earlier"
        f" scores unchanged to the bit; {proof['distributions']} distributions over"
        f" {proof['alphabet']:,} tokens sum to 1 within {proof['largest_deviation']:.1e};"
        f" {proof['bytes']:,} token bytes are the UTF-8 bytes of the text"
    )


def _mode(score: Score) -> str:
    details = score.details
    stride = f", stride {details['stride']}" if "stride" in details else ""
    return f"{score.mode}, context {details.get('context')}{stride}, {details.get('precision')}"


def _adaptation(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, []))


def update_card(folder: Path, score: Score) -> None:
    """Put a new score of the run's artifact on the run's card; other cards and scores of other
    files stay as they are.

    The card's own score is replaced when it is measured again (evidence of a proof comes with it);
    another mode or split is listed. A score that is not valid never touches the card: it gets one
    of its own beside its score file.
    """
    try:
        card = json.loads((folder / "card.json").read_text("utf-8"))
    except (OSError, ValueError):
        return
    if card.get("artifact_sha256") != score.artifact_sha256 or score.artifact_sha256 is None:
        return
    if not score.valid:
        own = _rescored(card, score)
        write_atomically(
            folder / "scores" / f"{score.label}-card.md", (card_markdown(own).encode(),)
        )
        return
    if _kind(card) == _kind(score.summary()):
        write_card(_rescored(card, score), folder)
        return
    others = [entry for entry in card["scores"] if _kind(entry) != _kind(score.summary())]
    write_card(add_score({**card, "scores": others}, score), folder)


def _rescored(card: Card, score: Score) -> Card:
    return {
        **card,
        **score.summary(),
        "packed_bpb": score.bpb,
        "tax_bpb": score.bpb - card["float_bpb"],
    }


def _kind(summary: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two scores measurements of the same thing."""
    details = summary["details"]
    return (
        summary["mode"],
        summary["data_sha256"],
        details.get("split"),
        details.get("context"),
        details.get("stride"),
        details.get("adaptation"),
    )
