"""`niblick card`: print the card of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from niblick.artifact.load import shipped_file
from niblick.cli.options import JsonOption
from niblick.errors import NiblickError
from niblick.files import MALFORMED, read_json
from niblick.limits import cut


def card_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run directory, one of several seeds, or a shipped model."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Print RUN's card as Markdown, or as JSON."""
    path = run / "card.json"
    if (shipped := shipped_file(run)) is not None:
        path = shipped.with_suffix(".card.json")
    if not path.exists():
        raise NiblickError(f"no card in {str(run)!r}; a run has one once it is scored")
    card = read_json(path)
    try:
        show_card(card, as_json)
    except MALFORMED as error:
        raise NiblickError(f"{str(path)!r} is not a card: {cut(repr(error), 120)}") from None


def show_card(card: dict[str, Any], as_json: bool) -> None:
    """Print a run's card, or the one over several seeds: JSON, Markdown, or on a terminal drawn
    Markdown.
    """
    from niblick.scoring.card import card_markdown
    from niblick.scoring.seeds import seeds_markdown

    if as_json:
        print(json.dumps(card, allow_nan=False))
        return
    text = seeds_markdown(card) if "figures" in card else card_markdown(card)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text)
