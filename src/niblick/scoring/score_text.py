"""A Score as a few lines of plain text, and on the card of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from niblick.errors import NiblickError
from niblick.files import write_atomically
from niblick.recipe import load_recipe
from niblick.scoring.card import Card, card_markdown, change_card, interval_text
from niblick.scoring.options import MODES, EvaluationOptions
from niblick.scoring.score import NOT_VALID, Score, score_kind, without_engine


def score_text(score: Score) -> str:
    """What `niblick eval` prints; an invalid score says so in its first line."""
    details = score.details
    lines = [] if score.valid else [f"{NOT_VALID}: {details.get('reason', 'see details')}"]
    lines += [
        f"bits per byte     {score.bpb:.6f}{interval_text(details)}",
        f"nats per token    {score.nats_per_token:.6f}",
        (
            f"scored            {score.tokens:,} tokens, {score.bytes:,} bytes,"
            f" {_documents(details.get('documents', 0))}"
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
    if score.settings.get("adaptation"):
        told = {**score.settings["adaptation"], **details.get("learnt", {})}
        lines.append(f"adaptation        {_adaptation(told)}")
    if details.get("proof"):
        lines.append(f"proof             {proof_text(details['proof'])}")
    return "\n".join(lines)


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"


def proof_text(proof: dict[str, Any]) -> str:
    """The evidence of a proof in one line."""
    return (
        f"{proof['cuts']} cuts over {proof['tokens']:,} tokens: {proof['compared']:,} earlier"
        f" scores unchanged to the bit; {proof['distributions']} distributions over"
        f" {proof['alphabet']:,} tokens sum to 1 within {proof['largest_deviation']:.1e};"
        f" {proof['bytes']:,} token bytes are the UTF-8 bytes of the text"
    )


def _mode(score: Score) -> str:
    settings = score.settings
    stride = f", stride {settings['stride']}" if settings.get("stride") else ""
    return f"{score.mode}, context {settings.get('context')}{stride}, {settings.get('precision')}"


def _adaptation(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, []))


def own_settings(folder: Path, mode: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """The mode and settings that a run's recipe asks for, in `mode` instead where it is given; None
    where the folder holds no recipe that can be read. The engine is left out.
    """
    try:
        recipe = load_recipe(folder / "recipe.toml")
    except NiblickError:
        return None
    changes = {"mode": mode} if mode in MODES else {}
    options = EvaluationOptions.from_recipe(recipe, **changes)
    return options.mode, without_engine(options.settings(recipe.model.context))


def update_card(folder: Path, score: Score) -> None:
    """Put a new score of the run's artifact on the run's card; other cards and scores of other
    files stay as they are.

    The headline is the score of the recipe's own settings that the run took: measured again, it
    only gains the evidence of a proof, and every other score is listed below it. (A headline of
    other settings, which older versions could put there, gives way to one of the recipe's own.) A
    score that is not valid never touches the card: it gets one of its own beside its score file.
    """
    if not (folder / "card.json").is_file():
        return
    own = own_settings(folder)

    def changed(card: Card | None) -> Card | None:
        if card is None or score.artifact_sha256 is None:
            return None
        if card.get("artifact_sha256") != score.artifact_sha256:
            return None
        if not score.valid:
            path = folder / "scores" / f"{score.name}-card.md"
            write_atomically(path, (card_markdown(_rescored(card, score)).encode(),))
            return None
        if score_kind(card) == score.kind:
            return _proven(card, score)
        same_text = (card["split"], card["data_sha256"]) == (score.split, score.data_sha256)
        wrong = own is not None and (card["mode"], without_engine(card["settings"])) != own
        if wrong and same_text and (score.mode, without_engine(score.settings)) == own:
            return _rescored(card, score)
        others = [entry for entry in card["scores"] if score_kind(entry) != score.kind]
        return {**card, "scores": [*others, score.summary()]}

    change_card(folder, changed)


def _proven(card: Card, score: Score) -> Card | None:
    if not score.details.get("proof"):
        return None
    return {**card, "details": {**card["details"], "proof": score.details["proof"]}}


def _rescored(card: Card, score: Score) -> Card:
    return {
        **card,
        **score.summary(),
        "packed_bpb": score.bpb,
        "tax_bpb": score.bpb - card["float_bpb"],
    }
