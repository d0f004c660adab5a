"""The two ends of a run: what is checked before its first step, and the card written at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niblick.artifact.sizes import artifact_sizes
from niblick.codecs import CODECS, rounding_specs
from niblick.data.corpus import corpora
from niblick.errors import CapacityError
from niblick.files import run_of
from niblick.plan import make_plan
from niblick.recipe import Recipe
from niblick.runtime import cache_folder, describe_environment
from niblick.scoring.baselines import LARGEST, compressor_baselines, take_documents
from niblick.scoring.card import LEAST, Card, make_card, write_card
from niblick.training.run_folder import RunFolder

if TYPE_CHECKING:
    from niblick.data.dataset import Dataset
    from niblick.report.run import Outcome

Say = Callable[[str], None]
_HOPELESS = 1.1  # An estimate may be wrong by a tenth.


def check_packing(recipe: Recipe, *, resuming: bool = False) -> list[str]:
    """What to warn of before training; `CapacityError` where the cap would be exceeded by far.

    A run that is being resumed is let go on: its float weights can be packed with another codec.
    """
    plan = make_plan(recipe.model)
    rounding_specs(recipe, plan, refuse=not resuming)
    _, estimate = artifact_sizes(recipe, plan)
    limit = recipe.artifact.max_bytes
    if estimate <= limit:
        return []
    filling = [name for name in CODECS if CODECS[name].fills_cap]
    cure = "a smaller model"
    if recipe.artifact.codec not in filling:
        without = (
            " (with --set training.qat.enabled=false)"
            if recipe.training.qat.enabled is True
            else ""
        )
        cure = f"--set artifact.codec={filling[0]}, which fills the cap{without}"
    said = (
        f"the artifact, estimated at {estimate:,} bytes, exceeds the cap of {limit:,}; cure:"
        f" {cure}, or --max-bytes"
    )
    if estimate > _HOPELESS * limit and not resuming:
        raise CapacityError(said)
    return [said]


def write_run_card(recipe: Recipe, folder: Path, outcome: Outcome, say: Say) -> Card:
    """The card of a finished run, compressors on the same text beside it, written into `folder`."""
    dataset, result, packed = outcome.dataset, outcome.result, outcome.packed
    assert packed is not None
    baselines = _baselines(dataset, say)
    tokenizer = dataset.tokenizer
    card = make_card(
        recipe,
        make_plan(recipe.model),
        floating=outcome.floating,
        packed=outcome.scored,
        artifact={"bytes": packed.size, "ledger": packed.ledger.to_json(), "choice": packed.choice},
        training={
            "seconds": result.seconds + packed.calibration_seconds,
            "tokens": result.tokens,
            "steps": result.steps,
            "compiled": result.compiled,
            "precision": result.precision,
            "rounded": result.rounded,
            "calibration": _calibration(outcome),
            "passes": result.tokens / max(dataset.token_count("train"), 1),
            "init_from": _start(folder),
        },
        data={
            "corpus": dataset.name + _part(recipe),
            "attribution": dataset.attribution,
            "tokenizer": tokenizer.name,
            "lossless": tokenizer.lossless,
            **_own(dataset),
        },
        baselines=baselines,
        environment=describe_environment(),
    )
    write_card(card, folder)
    return card


def _start(folder: Path) -> dict[str, str] | None:
    """The name and the SHA-256 of the model that a run started from; of one in a run the run's."""
    found = RunFolder(folder).environment().get("init_from")
    if not found:
        return None
    path = Path(found["model"])
    return {**found, "model": (run_of(path) or path).name}


def _baselines(dataset: Dataset, say: Say) -> dict[str, float]:
    """What compressors reach on the held-out text, where it is not too large for them."""
    held_out = take_documents(dataset.texts("validation"), LARGEST)
    if held_out.cut or len(held_out.text) < LEAST:
        return {}
    say("measuring general compressors on the same text ...")
    train = take_documents(dataset.texts("train"), LARGEST)
    found = compressor_baselines(train.text, held_out.text, cache_folder())
    part = f", with {LARGEST // 10**6} MB of it" if train.cut else ""
    return {f"{name}{part}": bpb for name, bpb in found.items()}


def _part(recipe: Recipe) -> str:
    """What of the corpus trained and was scored, where it is not the usual."""
    share = f"{recipe.data.share:.3g} of its training text" * (recipe.data.share < 1)
    told = ", ".join(filter(None, (share, "development split" * recipe.data.development)))
    return f" ({told})" if told else ""


def _own(dataset: Dataset) -> dict[str, Any]:
    """What a card says of a prepared text: its size, and whether it is the user's own."""
    if dataset.manifest is None:
        return {}
    size = dataset.manifest.splits["train"].bytes
    return {"own": dataset.manifest.corpus not in corpora, "train_bytes": size}


def _calibration(outcome: Outcome) -> dict[str, int] | None:
    """How many sequences the codec's sensitivities rest on, of how many that were planned."""
    found = outcome.calibration
    return {"sequences": found.sequences, "planned": found.planned} if found else None
