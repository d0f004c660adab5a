"""`niblick card`: print the card of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.options import JsonOption
from niblick.errors import NiblickError


def card_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or one of several seeds.")],
    as_json: JsonOption = False,
) -> None:
    """Print RUN's card as Markdown, or as JSON."""
    path = run / "card.json"
    try:
        text = path.read_text("utf-8")
        card = json.loads(text)
    except OSError as error:
        raise NiblickError(f"no card in {str(run)!r}: {error.strerror}; a run has one once it is scored") from None
    except ValueError as error:
        raise NiblickError(f"{str(path)!r} is damaged: {error}") from None
    if as_json:
        print(text.strip())
        return
    from niblick.report.card import card_markdown
    from niblick.report.seeds import seeds_markdown

    print(seeds_markdown(card) if "figures" in card else card_markdown(card))
