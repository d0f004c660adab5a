"""`niblick train RECIPE --data TEXT`: a run on a text of one's own, prepared in the run directory."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from niblick.cli.imports import importing
from niblick.cli.runs import Options, run_once, run_seeds
from niblick.errors import DataError, NiblickError

if TYPE_CHECKING:
    from niblick.data.corpus import Corpus
    from niblick.recipe import Recipe
    from niblick.report.own_text import Fitted
    from niblick.text.tokenizer import Tokenizer

STANDARD_INPUT = "-"


def given_keys(source: str, overrides: list[str] | None, duration: str | None) -> set[str]:
    """The recipe keys that the user has decided: all that are ever chosen, for a recipe file."""
    from niblick.recipe.load import list_recipes
    from niblick.report.own_text import CHOSEN, DURATION

    if source not in list_recipes():
        return set(CHOSEN)
    keys = {item.partition("=")[0].strip() for item in overrides or []}
    return keys | ({DURATION} if duration is not None else set())


def train_on_text(
    recipe: Recipe,
    source: str,
    out: Path | None,
    *,
    given: Collection[str],
    tokenizer: str | None,
    seeds: int | None,
    options: Options,
) -> None:
    """Prepare `source` in the run directory, fit the recipe to it, say what was chosen, train."""
    with importing():
        from niblick.evaluation.processes import in_turn
        from niblick.report.run import run_directory
        from niblick.runtime import read_world

    world = read_world()
    if source == STANDARD_INPUT and world.size > 1:
        raise NiblickError("--data - is read by one process; save the text for several")
    text = _read_standard_input() if source == STANDARD_INPUT else None
    with run_directory(world, out, name=recipe.name) as place:
        if (place / "recipe.toml").exists():
            raise NiblickError(
                f"{str(place)!r} holds a run; continue it with --resume or choose another --out"
            )
        fitted = in_turn(world, lambda: _fit(recipe, source, text, place, given, tokenizer))
        if world.is_main:
            if out is None:
                print(f"run directory: {place}", file=sys.stderr)
            for line in fitted.said:
                print(line, file=sys.stderr, flush=True)
        if seeds is None:
            run_once(fitted.recipe, place, options)
        else:
            run_seeds(fitted.recipe, place, seeds, options)


def _fit(
    recipe: Recipe,
    source: str,
    text: str | None,
    place: Path,
    given: Collection[str],
    tokenizer: str | None,
) -> Fitted:
    from niblick.data.dataset import find_files
    from niblick.data.manifest import load_manifest
    from niblick.report.own_text import FOLDER, fit_shards, fit_text

    folder = Path(source)
    if text is None and folder.is_dir() and (load_manifest(folder) or find_files(folder)):
        if tokenizer is not None:
            raise NiblickError("shards keep the tokenizer they were written with: no --tokenizer")
        return fit_shards(recipe, folder, given=given)
    return fit_text(
        recipe, _corpus(source, text), place / FOLDER, given=given, tokenizer=_tokenizer(tokenizer)
    )


def _corpus(source: str, text: str | None) -> Corpus:
    from niblick.data.corpus import load_corpus, own_corpus
    from niblick.text.tokenizer import refuse_surrogates

    corpus = load_corpus(source) if text is None else own_corpus("standard input", [text])
    if not corpus.splits["train"]:
        raise DataError(f"{corpus.name} holds no text to train on")
    for split, texts in corpus.splits.items():
        for number, each in enumerate(texts):
            refuse_surrogates(each, f"{split} document {number}")
    return corpus


def _tokenizer(name: str | None) -> Tokenizer | None:
    from niblick.artifact.load import open_tokenizer

    return None if name is None else open_tokenizer(name)


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        print("reading text from the terminal; end with Ctrl-D", file=sys.stderr)
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8: byte {error.start} is 0x{data[error.start]:02X}"
        ) from None
    if not text.strip():
        raise DataError("standard input holds no text")
    return text
