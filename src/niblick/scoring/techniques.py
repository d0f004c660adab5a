"""The one list of techniques: how cards describe a recipe, and what ablations leave out.

The parts of a model declare theirs (`niblick.components`); here are those of training, data, codec
and evaluation, and what is made of all of them. A recipe uses a technique when taking it out
changes the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from niblick import components
from niblick.codecs.base import CODECS, noisy, rounding_specs
from niblick.components.base import Entry, Technique, section_entry, setting
from niblick.errors import RecipeError
from niblick.limits import did_you_mean, quoted
from niblick.plan import Plan, make_plan
from niblick.recipe import Recipe, changed, load_recipe

GROUPS = (
    "architecture",
    "quantization",
    "weight averaging",
    "optimizer",
    "LR schedule",
    "regularization",
    "initialization",
    "evaluation",
    "test-time training",
    "sequence length",
    "compression",
    "other",
)
"""The groups of a record card, in order (systems.md section 5)."""
PUBLISHED = ("token-shift", "depth-recurrent", "sidecar")
Techniques = dict[str, list[Entry]]


def rounds_late(recipe: Recipe) -> bool:
    """Whether training rounds as the recipe's codec will, or under its errors."""
    return noisy(recipe) or bool(rounding_specs(recipe, make_plan(recipe.model), refuse=False))


def _codec(recipe: Recipe, part: str) -> Entry:
    return CODECS[recipe.artifact.codec].describe(recipe)[part]


def _averaging(recipe: Recipe, plan: Plan) -> list[Entry]:
    averaging = recipe.training.averaging
    keys = {"none": (), "ema": ("decay", "warmup"), "swa": ("every", "start"), "power": ("width",)}[
        averaging.kind
    ]
    name = "power EMA" if averaging.kind == "power" else averaging.kind.upper()
    entry = {"name": name, **{key: getattr(averaging, key) for key in keys}}
    return [entry] if keys else []


def _optimizers(recipe: Recipe, plan: Plan) -> list[Entry]:
    training, used = recipe.training, sorted(set(recipe.training.optimizer.model_dump().values()))
    known = {"muon": ("Muon", training.muon), "adam": ("Adam", training.adam)}
    found = [
        section_entry(*known[name], "weight_decay") if name in known else {"name": name}
        for name in sorted(used, reverse=True)
    ]
    return [*found, {"name": "batch", "tokens": training.batch_tokens}]


def _decay(recipe: Recipe, plan: Plan) -> list[Entry]:
    training, used = recipe.training, set(recipe.training.optimizer.model_dump().values())
    muon, adam, decoupled = training.muon, training.adam, "decoupled weight decay"
    found: dict[str, Entry] = {}
    for optimizer, name, decay in (
        ("muon", decoupled, muon.weight_decay),
        ("adam", decoupled if adam.decoupled else "L2 penalty", adam.weight_decay),
    ):
        if decay and optimizer in used:
            found.setdefault(name, {"name": name})[optimizer] = decay
    return [*found.values()]


def _warmdown(recipe: Recipe, plan: Plan) -> list[Entry]:
    schedule = recipe.training.schedule
    named = section_entry(f"{schedule.kind} warmdown", schedule, "kind")
    return [named] if schedule.warmdown != 0 else []


def _dropout(recipe: Recipe, plan: Plan) -> list[Entry]:
    tables = {part.table for part in components.BEFORE if part.used(recipe.model)}
    found = recipe.training.dropout.model_dump().items()
    rates = {k: rate for k, rate in found if rate and k in tables}
    return [{"name": "dropout of table rows", **rates}] if rates else []


def _evaluation(recipe: Recipe, plan: Plan) -> list[Entry]:
    options = recipe.evaluation
    stride = {"stride": options.stride} if options.mode == "sliding" else {}
    context = options.context or recipe.model.context
    return [{"name": f"{options.mode} evaluation", **stride, "context": context}]


def _lengths(recipe: Recipe, plan: Plan) -> list[Entry]:
    train, context = recipe.training.sequence_length, recipe.model.context
    return [{"name": "sequence length", "train": train, "context": context}]


def _tokenizer(recipe: Recipe, plan: Plan) -> list[Entry]:
    kind, size = recipe.data.tokenizer, recipe.model.vocab_size
    return [{"name": "tokenizer", "kind": kind, "vocabulary": size}]


def _of_tokenizer(name: str, summary: str, shown: str, less: dict[str, str]) -> Technique:
    """A technique of trained tokenizers; `less` maps those that use it to what they are without."""

    def without(recipe: Recipe) -> dict[str, Any]:
        found = less.get(recipe.data.tokenizer)
        return {"data.tokenizer": found} if found else {}

    def card(recipe: Recipe, plan: Plan) -> list[Entry]:
        return [{"name": shown}] * (recipe.data.tokenizer in less)

    return Technique(name=name, summary=summary, group="other", without=without, card=card)


_OF_RUNS = (
    Technique(
        name="codec",
        group="quantization",
        card=lambda recipe, plan: [
            _codec(recipe, "quantization") | {"max_bytes": recipe.artifact.max_bytes}
        ],
    ),
    Technique(
        name="qat",
        summary="late quantization-aware training",
        group="quantization",
        without=lambda recipe: {"training.qat.enabled": False} if rounds_late(recipe) else {},
        card=lambda recipe, plan: (
            [section_entry("late quantization-aware training", recipe.training.qat)]
            * rounds_late(recipe)
        ),
    ),
    Technique(
        name="averaging",
        summary="weight averaging",
        group="weight averaging",
        without=setting(training__averaging__kind="none"),
        card=_averaging,
    ),
    Technique(name="optimizers", group="optimizer", card=_optimizers),
    Technique(
        name="nesterov",
        summary="Nesterov momentum",
        group="optimizer",
        without=setting(training__muon__nesterov=False),
    ),
    Technique(
        name="normuon",
        summary="neurons' updates made equally long (NorMuon)",
        group="optimizer",
        without=setting(training__muon__neuron_beta=None),
    ),
    Technique(
        name="warmdown",
        summary="learning-rate warmdown",
        group="LR schedule",
        without=setting(training__schedule__warmdown=0.0),
        card=_warmdown,
    ),
    Technique(
        name="weight-decay",
        summary="weight decay",
        group="regularization",
        without=setting(training__muon__weight_decay=0.0, training__adam__weight_decay=0.0),
        card=_decay,
    ),
    Technique(
        name="dropout",
        summary="dropout of table rows",
        group="regularization",
        without=setting(
            training__dropout__token=0.0,
            training__dropout__bigram=0.0,
            training__dropout__value_embedding=0.0,
        ),
        card=_dropout,
    ),
    Technique(
        name="clip",
        summary="gradient clipping",
        group="regularization",
        without=setting(training__clip=0.0),
        card=lambda recipe, plan: (
            [{"name": "gradient clipping", "norm": recipe.training.clip}]
            * bool(recipe.training.clip)
        ),
    ),
    Technique(name="evaluation", group="evaluation", card=_evaluation),
    Technique(name="lengths", group="sequence length", card=_lengths),
    Technique(
        name="document-rows",
        summary="rows of whole documents, packed anew each pass",
        group="sequence length",
        without=setting(data__rows="text"),
        card=lambda recipe, plan: (
            [{"name": "rows of whole documents"}] * (recipe.data.rows == "documents")
        ),
    ),
    Technique(
        name="coding",
        group="compression",
        card=lambda recipe, plan: [_codec(recipe, "compression")],
    ),
    Technique(name="tokenizer", group="other", card=_tokenizer),
    _of_tokenizer(
        "case-operators",
        "case operators in the tokenizer",
        "case operators",
        {"train-case": "train", "train-unigram-case": "train-unigram"},
    ),
    _of_tokenizer(
        "unigram",
        "a unigram model as the tokenizer",
        "unigram tokenizer",
        {"train-unigram": "train", "train-unigram-case": "train-case"},
    ),
)


def all_techniques() -> Iterator[Technique]:
    """Those of the model's parts, then those of the run."""
    yield from components.techniques()
    yield from _OF_RUNS


def techniques(recipe: Recipe, plan: Plan) -> Techniques:
    """Group -> list of {"name", and its parameters}; empty groups are left out."""
    found: Techniques = {group: [] for group in GROUPS}
    for technique in all_techniques():
        found[technique.group] += technique.card(recipe, plan)
    return {group: entries for group, entries in found.items() if entries}


def new_techniques(recipe: Recipe, plan: Plan) -> list[str]:
    """Names of techniques that none of the three published recipes has."""
    known: set[str] = set()
    for published in map(load_recipe, PUBLISHED):
        known |= _names(techniques(published, make_plan(published.model)))
    return sorted(_names(techniques(recipe, plan)) - known)


def _names(found: Techniques) -> set[str]:
    return {entry["name"] for entries in found.values() for entry in entries}


def used_techniques(recipe: Recipe) -> list[str]:
    """Names of the techniques that `recipe` uses and can do without."""
    return [t.name for t in all_techniques() if t.without and _uses(recipe, t)]


def without(recipe: Recipe, name: str) -> Recipe:
    """The recipe without one technique, or several as in "bigram+smear".

    Raises `RecipeError` for a name that is unknown or not used, listing those that are.
    """
    known = {technique.name: technique for technique in all_techniques() if technique.without}
    changed = recipe
    for part in name.split("+"):
        if part not in known:
            like = did_you_mean(part, known)
            problem = f"unknown technique {quoted(part)}{like or ';'} {recipe.name} uses"
        elif not _uses(changed, known[part]):
            problem = f"{recipe.name} does not use the technique {part!r}; it uses"
        else:
            changed = _left_out(changed, known[part])
            continue
        raise RecipeError(f"{problem}: {', '.join(used_techniques(recipe))}")
    return changed


def _uses(recipe: Recipe, technique: Technique) -> bool:
    try:
        return _left_out(recipe, technique) != recipe
    except RecipeError:
        return False


def _left_out(recipe: Recipe, technique: Technique) -> Recipe:
    assert technique.without is not None
    return changed(recipe, technique.without(recipe))
