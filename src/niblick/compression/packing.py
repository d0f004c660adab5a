"""Packing: tensors, recipe and tokenizer become one artifact file under a cap, with its ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from niblick.artifact import container
from niblick.artifact.atomic import write_file
from niblick.artifact.ledger import Ledger
from niblick.artifact.load import capacity, exported_recipe
from niblick.codecs.base import Encoded, exported_tensors
from niblick.compression import Job, get_codec
from niblick.compression.calibration import Calibration
from niblick.errors import ArtifactError, CapacityError
from niblick.plan import make_plan
from niblick.recipe import Recipe, stored_values
from niblick.runtime import settle_threads
from niblick.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Packed:
    """A written artifact: its size on disk, its ledger, its tensors as decoded, and what the codec
    chose.

    `calibration_seconds` is the time spent reading training text, which counts as training time.
    """

    path: Path
    size: int
    ledger: Ledger
    tensors: dict[str, Tensor]
    choice: dict[str, Any] = field(default_factory=dict)
    calibration_seconds: float = 0.0


def pack(
    tensors: dict[str, Tensor],
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    max_bytes: int | None = None,
    codec: str | None = None,
    calibration: Calibration | None = None,
    target_tax: float | None = None,
    extra_bytes: int = 0,
    meta: dict[str, Any] | None = None,
) -> Packed:
    """Encode `tensors` and write the artifact `out` atomically; nothing is written when the cap is
    exceeded.

    `max_bytes` caps the file plus `extra_bytes` (the code's, where it counts). `codec` overrides
    the recipe's. Raises `CapacityError` naming the excess and the largest tensors, `ArtifactError`
    for tensors that do not fit.
    """
    settle_threads()
    name = codec or recipe.artifact.codec
    engine = get_codec(name)
    recipe = recipe.model_copy(
        update={"artifact": recipe.artifact.model_copy(update={"codec": name})}
    )
    plan = make_plan(exported_recipe(recipe).model)
    header = {"codec": name, "meta": meta or {}, "recipe": stored_values(recipe)}
    stored = tokenizer.to_bytes() if tokenizer is not None else b""
    fixed = len(container.build(header, stored, b""))
    budget = None if max_bytes is None else max_bytes - extra_bytes - fixed
    kept = exported_tensors(tensors, make_plan(recipe.model))
    job = Job(
        tensors=kept,
        recipe=recipe,
        plan=plan,
        budget=budget,
        target_tax=target_tax,
        calibration=calibration,
    )
    encoded = engine.encode(job)
    if plan.parameter_count > capacity(len(encoded.payload)):
        raise ArtifactError(
            f"{plan.parameter_count:,} nearly constant parameters; no artifact may declare that"
            " many"
        )
    ledger = _ledger(encoded, header, fixed - len(stored), len(stored))
    if budget is not None and len(encoded.payload) > budget:
        _refuse(ledger, extra_bytes, max_bytes or 0, encoded.choice)
    write_file(out, container.build(header, stored, encoded.payload))
    seconds = calibration.seconds if calibration is not None else 0.0
    return Packed(out, ledger.total, ledger, encoded.decoded, encoded.choice, seconds)


def _ledger(encoded: Encoded, header: dict[str, Any], head: int, tokenizer: int) -> Ledger:
    parts = {
        "container": container.FIXED_BYTES,
        "header": head - container.FIXED_BYTES,
        "tokenizer": tokenizer,
    }
    return Ledger({**parts, **encoded.parts}, encoded.tensors)


def _refuse(ledger: Ledger, extra: int, limit: int, choice: dict[str, Any]) -> None:
    excess = ledger.total + extra - limit
    least = ", the smallest this codec can make," if choice.get("limit") == "smallest" else ""
    code = f" and {extra:,} B of code" if extra else ""
    raise CapacityError(
        f"the artifact of {ledger.total:,} B{least}{code} exceeds the cap of {limit:,} B by"
        f" {excess:,} B; largest tensors: {ledger.largest()}"
    )
