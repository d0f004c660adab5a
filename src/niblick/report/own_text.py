"""A recipe fitted to a text of one's own: vocabulary, width, length of training, and why.

Only what the user has left open is chosen. The rules are few and were measured ("How much model for
how much text" in docs/experiments.md); the recipe that comes out says all of it and needs none.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niblick.artifact.load import open_tokenizer
from niblick.data.corpus import SPLITS, Corpus, corpora, load_corpus, own_corpus
from niblick.data.dataset import Dataset, find_files, open_dataset
from niblick.data.inputs import LARGE, is_large
from niblick.data.manifest import load_manifest
from niblick.data.prepare import prepare
from niblick.errors import DataError, NiblickError, RecipeError
from niblick.recipe import Recipe, changed, keyed, list_recipes
from niblick.report.shapes import VOCABULARY, WIDTH, fit_cap
from niblick.text.bytetable import refuse_surrogates
from niblick.text.learning import TRAINED, trained_as
from niblick.text.tokenizer import Tokenizer

DURATION, BATCH = "training.duration", "training.batch_tokens"
RATES = ("training.muon.lr", "training.adam.embedding_lr", "training.adam.scalar_lr")
CHOSEN = (VOCABULARY, WIDTH, DURATION, BATCH, *RATES)
FOLDER = "data"  # of a run directory: the shards of its own text


@dataclass(frozen=True)
class _Rule:
    """Up to `size` bytes of training text: the largest vocabulary, part of the width, passes; and
    the share of the learning rates for a run that starts from a model's weights.
    """

    size: float
    vocabulary: int
    width: float
    passes: float | None  # None: the recipe's own duration
    rates: float


_RULES = (
    _Rule(150_000, 512, 0.5, 4, 0.25),
    _Rule(1_000_000, 1024, 0.5, 5, 0.5),
    _Rule(2_500_000, 2048, 1.0, 6, 1.0),
    _Rule(float("inf"), 65536, 1.0, None, 1.0),
)
_STEPS = 32  # of the optimizer in one pass, at least
_SHORT, _FEWEST = 128, 600  # tokens: the shortest sequence, and the least text


@dataclass(frozen=True)
class Fitted:
    """A recipe whose `data.corpus` is a folder of shards, and what was chosen, in sentences."""

    recipe: Recipe
    said: tuple[str, ...]


def given_keys(
    source: str | Path, overrides: Collection[str] = (), duration: str | None = None
) -> set[str]:
    """The recipe keys that the user has decided: all that are ever chosen, for a recipe file."""
    if str(source) not in list_recipes():
        return set(CHOSEN)
    return set(keyed(overrides)) | ({DURATION} if duration is not None else set())


def fit_data(
    recipe: Recipe,
    source: str | Path,
    place: Path,
    *,
    text: str | None = None,
    given: Collection[str] = (),
    tokenizer: str | Path | None = None,
) -> Fitted:
    """Fit `recipe` to what `source` names: shards, a file or a folder of text, or `text` itself.

    A text's shards are written into the run directory `place`. Raises `DataError` for a source that
    holds no text.
    """
    folder = Path(source)
    if (folder / "recipe.toml").is_file() and (folder / "checkpoints").is_dir():
        raise NiblickError(
            f"{str(source)!r} is a run, not a text; its text may be in {folder / FOLDER}"
        )
    if text is None and folder.is_dir() and (load_manifest(folder) or find_files(folder)):
        _refuse_retokenizing(folder, tokenizer)
        return fit_shards(recipe, folder, given=given)
    own = None if tokenizer is None else open_tokenizer(str(tokenizer))
    target = place / FOLDER
    is_new = not target.exists()
    try:
        if text is None and source not in corpora and is_large(source):
            return _fit_large(recipe, source, target, given, own)
        corpus = _corpus(str(source), text)
        return fit_text(recipe, corpus, target, given=given, tokenizer=own)
    except NiblickError:
        if is_new:
            shutil.rmtree(target, ignore_errors=True)  # the next try may be of another text
        raise


def _refuse_retokenizing(shards: Path, tokenizer: str | Path | None) -> None:
    """Shards keep the tokenizer that they were written with."""
    if tokenizer is not None:
        given, own = open_tokenizer(str(tokenizer)), open_dataset(shards).tokenizer
        if given.to_bytes() != own.to_bytes():
            raise NiblickError(
                f"{str(shards)!r} holds shards in the tokens of {own.name}, which they keep;"
                f" {str(tokenizer)!r} is another tokenizer"
            )


def _fit_large(
    recipe: Recipe,
    source: str | Path,
    folder: Path,
    given: Collection[str],
    tokenizer: Tokenizer | None,
) -> Fitted:
    """Stream a large corpus into `folder`, and fit `recipe` to the shards."""
    fitted, said = recipe, list[str]()
    if tokenizer is None and recipe.data.tokenizer in TRAINED:
        shaped, said = _fit_shape(recipe, LARGE, given, learned=True)
        fitted, said = changed(recipe, {VOCABULARY: shaped.model.vocab_size}), said[:1]
    dataset = prepare(
        source,
        out=folder,
        tokenizer=tokenizer or fitted.data.tokenizer,
        vocab_size=None if tokenizer else fitted.model.vocab_size,
    )
    found = fit_shards(fitted, dataset.folder, given=given)
    return Fitted(found.recipe, (*said, *found.said[1:]) if said else found.said)


def _corpus(source: str, text: str | None) -> Corpus:
    corpus = load_corpus(source) if text is None else own_corpus("standard input", [text])
    if not corpus.splits["train"]:
        raise DataError(f"{corpus.name} holds no text to train on")
    for split, texts in corpus.splits.items():
        for number, each in enumerate(texts):
            refuse_surrogates(each, f"{split} document {number}")
    return corpus


def fit_text(
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    *,
    given: Collection[str] = (),
    tokenizer: Tokenizer | None = None,
) -> Fitted:
    """Prepare `corpus` into `folder` and fit `recipe` to it; keys that are `given` stay.

    `tokenizer` is used in place of one trained on the text. Raises `DataError` for too little text,
    or where `folder` holds the shards of another text.
    """
    _refuse_other(folder, corpus)
    size = sum(len(text.encode()) for text in corpus.splits["train"])
    fitted, said = recipe, [_contents(corpus), *corpus.notes]
    if tokenizer is None and recipe.data.tokenizer in TRAINED:
        fitted, why = _fit_shape(recipe, size, given, learned=True)
    else:
        why = []
        if tokenizer is not None:
            fitted, why = _with_tokenizer(recipe, tokenizer, given)
        fitted, wide = _fit_shape(fitted, size, given, learned=False)
        why = [*why, *wide]
    dataset = prepare(
        corpus,
        out=folder,
        tokenizer=tokenizer or fitted.data.tokenizer,
        vocab_size=fitted.model.vocab_size,
    )
    return _finish(fitted, dataset, given, [*said, *why])


def fit_shards(recipe: Recipe, folder: Path, *, given: Collection[str] = ()) -> Fitted:
    """Fit `recipe` to prepared shards: their vocabulary, and the rest where their size is known."""
    dataset = open_dataset(folder)
    fitted, said = _with_tokenizer(recipe, dataset.tokenizer, given)
    if dataset.manifest is not None and dataset.manifest.corpus != recipe.data.corpus:
        size = dataset.manifest.splits["train"].bytes
        fitted, wide = _fit_shape(fitted, size, given, learned=False)
        said += wide
    return _finish(fitted, dataset, given, said)


def _finish(recipe: Recipe, dataset: Dataset, given: Collection[str], said: list[str]) -> Fitted:
    fitted, why = recipe, list[str]()
    if dataset.manifest is not None and dataset.manifest.corpus != recipe.data.corpus:
        fitted, why = _fit_training(recipe, dataset, given)
    kind = trained_as(dataset.tokenizer)
    changes = {"data.corpus": str(dataset.folder.absolute()), "data.tokenizer": kind}
    changes["description"] = f"{recipe.name} fitted to {dataset.name}"
    return Fitted(changed(fitted, changes), (*said, *why))


def _refuse_other(folder: Path, corpus: Corpus) -> None:
    """A run's shards are never replaced by those of another text."""
    found = load_manifest(folder) if folder.is_dir() else None
    if found is not None and found.corpus_sha256 != corpus.sha256():
        raise DataError(f"{str(folder)!r} holds another text's shards; choose another --out")


def _contents(corpus: Corpus) -> str:
    counts = [
        f"{sum(len(t.encode()) for t in texts):,} bytes for {split}"
        for split in SPLITS
        if (texts := corpus.splits.get(split))
    ]
    return f"{corpus.name}: {', '.join(counts)}"


def _rule(size: int) -> _Rule:
    return next(rule for rule in _RULES if size <= rule.size)


def _fit_shape(
    recipe: Recipe, size: int, given: Collection[str], *, learned: bool
) -> tuple[Recipe, list[str]]:
    """Vocabulary (where one is `learned` from the text) and width for `size` bytes of training text
    under the recipe's cap.
    """
    rule, own, cap = _rule(size), recipe.model, recipe.artifact.max_bytes
    limits: dict[str, Any] = {}
    if learned and VOCABULARY not in given:
        limits[VOCABULARY] = min(own.vocab_size, rule.vocabulary)
    if WIDTH not in given:
        limits[WIDTH] = round(rule.width * own.dim)
    try:
        limited = changed(recipe, limits)
    except RecipeError:  # heads that do not divide such a width
        limited = changed(recipe, {key: limits[key] for key in limits if key != WIDTH})
    fitted, _ = fit_cap(limited, given if learned else {*given, VOCABULARY})
    chosen, most, said = fitted.model, limited.model, list[str]()
    if VOCABULARY in limits:
        why = f"the recipe's own suits {size:,} bytes of training text"
        if chosen.vocab_size < most.vocab_size:
            why = f"a larger one leaves too little of {cap:,} bytes"
        elif most.vocab_size < own.vocab_size:
            why = f"with {size:,} bytes of training text a larger one is seen too seldom"
        said.append(f"vocabulary {chosen.vocab_size:,}: {why}")
    if WIDTH in limits:
        why = "the recipe's own"
        if chosen.dim < most.dim:
            why = f"a wider one would have too few bits a weight in {cap:,} bytes"
        elif most.dim < own.dim:
            why = f"a wider one learns {size:,} bytes of training text by heart sooner"
        said.append(f"width {chosen.dim}: {why}")
    return fitted, said


def _with_tokenizer(
    recipe: Recipe, tokenizer: Tokenizer, given: Collection[str]
) -> tuple[Recipe, list[str]]:
    if VOCABULARY in given and recipe.model.vocab_size != tokenizer.vocab_size:
        raise RecipeError(
            f"model.vocab_size={recipe.model.vocab_size}, but the tokenizer {tokenizer.name} has"
            f" {tokenizer.vocab_size} ids"
        )
    changes = {VOCABULARY: tokenizer.vocab_size, "model.bos_id": tokenizer.bos_id}
    return changed(recipe, changes), [
        f"vocabulary {tokenizer.vocab_size:,}: that of the tokenizer {tokenizer.name}"
    ]


def _fit_training(
    recipe: Recipe, dataset: Dataset, given: Collection[str]
) -> tuple[Recipe, list[str]]:
    """Batches of which one pass has some, and as many passes as do held-out text good."""
    assert dataset.manifest is not None
    size, tokens = dataset.manifest.splits["train"].bytes, dataset.token_count("train")
    if tokens < _FEWEST:
        raise DataError(
            f"{size:,} bytes of training text are {tokens:,} tokens, too few to train on; give"
            " some 2,000 bytes or more"
        )
    said, changes = [], _batches(recipe, tokens, given)
    if changes:
        steps = max(tokens // changes[BATCH], 1)
        said.append(
            f"batches of {changes[BATCH]:,} tokens: a pass of {tokens:,} has {steps:,} steps"
        )
    passes = _rule(size).passes
    if DURATION not in given and passes is not None:
        changes[DURATION] = f"{round(passes * tokens)} tokens"
        why = "more fit the training text, and no longer what is held out"
        said.append(f"duration {changes[DURATION]}, {passes:g} passes: {why}")
    elif DURATION not in given:
        said.append(f"duration {recipe.training.duration}: the recipe's own")
    rates = _rates(recipe, _rule(size).rates, given)
    if rates:
        share = f"{_rule(size).rates:g} of the recipe's"
        said.append(f"learning rates {share}: higher ones learn {size:,} bytes by heart sooner")
    return changed(recipe, changes | rates), said


def _rates(recipe: Recipe, share: float, given: Collection[str]) -> dict[str, float]:
    """Gentler learning rates for a run that starts from a model's weights."""
    if not recipe.training.init_from or share == 1:
        return {}
    muon, adam = recipe.training.muon, recipe.training.adam
    own = zip(RATES, (muon.lr, adam.embedding_lr, adam.scalar_lr), strict=True)
    return {key: share * rate for key, rate in own if key not in given}


def _batches(recipe: Recipe, tokens: int, given: Collection[str]) -> dict[str, Any]:
    training = recipe.training
    length, batch = training.sequence_length, training.batch_tokens
    if BATCH in given:
        return {}
    changes: dict[str, Any] = {}
    if tokens < 4 * length and "training.sequence_length" not in given:
        while length > _SHORT and tokens < 8 * length:
            length //= 2
        changes = {"training.sequence_length": length}
        if "model.context" not in given:
            changes["model.context"] = length
        batch = 2 * length
    while batch > 2 * length and tokens < _STEPS * batch and not batch % (4 * length):
        batch //= 2
    if batch == training.batch_tokens:
        return {}
    micro = training.micro_batch_tokens
    if micro is not None and micro > batch:
        changes["training.micro_batch_tokens"] = batch
    return {**changes, BATCH: batch}
