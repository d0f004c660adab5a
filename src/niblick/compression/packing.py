"""Packing: tensors, recipe and tokenizer become one artifact file under a cap, with its ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niblick.artifact import container
from niblick.artifact.ledger import Ledger
from niblick.artifact.load import capacity, exported_recipe
from niblick.codecs import CODECS, Job
from niblick.codecs.base import exported_tensors
from niblick.codecs.quantized import Tensor, Tensors
from niblick.compression.calibration import Calibration, mean_nll, self_generated
from niblick.compression.sensitivity import measure
from niblick.errors import ArtifactError, CapacityError
from niblick.files import write_atomically
from niblick.model import LanguageModel, build_model, load_tensors
from niblick.plan import make_plan
from niblick.recipe import Recipe, stored_values
from niblick.runtime import settle_threads
from niblick.text.tokenizer import Tokenizer

Stage = Callable[[str, float], None]  # what is being done, and the share of it that is done


@dataclass(frozen=True)
class Packed:
    """A written artifact: its size on disk, its ledger, its tensors as decoded, what was chosen.

    `calibration_seconds` is the time spent reading training text, which counts as training time.
    """

    path: Path
    size: int
    ledger: Ledger = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    choice: dict[str, Any] = field(default_factory=dict)
    calibration_seconds: float = 0.0


def pack(
    tensors: Mapping[str, ArrayLike],
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
    device: str = "cpu",
    on_stage: Stage | None = None,
) -> Packed:
    """Encode `tensors` and write the artifact `out`; nothing is written where the cap is exceeded.

    `max_bytes` caps the file plus `extra_bytes` (the code's, where it counts). `codec` overrides
    the recipe's. A codec that needs calibration and is given none calibrates on text that the model
    writes itself; losses and sensitivities are computed on `device`. `on_stage` is told what is
    being done and the share of it that is done, which is an estimate for the search of the codec.
    Raises `CapacityError` naming the excess and the largest tensors, `ArtifactError` for tensors
    that do not fit.
    """
    settle_threads()
    name = codec or recipe.artifact.codec
    chosen = CODECS[name]
    recipe = recipe.model_copy(
        update={"artifact": recipe.artifact.model_copy(update={"codec": name})}
    )
    plan = make_plan(exported_recipe(recipe).model)
    header, stored, fixed = _around(recipe, tokenizer, meta)
    kept = exported_tensors(tensors, make_plan(recipe.model))
    job = Job(
        tensors=kept,
        recipe=recipe,
        plan=plan,
        budget=None if max_bytes is None else max_bytes - extra_bytes - fixed,
        target_tax=target_tax,
        on_progress=stage_report(on_stage, "packing"),
        **_measured(kept, recipe, calibration, target_tax, on_stage, device)
        if chosen.needs_calibration
        else {},
    )
    encoded = chosen.encode(job)
    if plan.parameter_count > capacity(len(encoded.payload)):
        raise ArtifactError(
            f"{plan.parameter_count:,} nearly constant parameters; no artifact may declare that"
            " many"
        )
    head = container.FIXED_BYTES
    parts = {"container": head, "header": fixed - len(stored) - head, "tokenizer": len(stored)}
    ledger = Ledger(parts | encoded.parts, encoded.tensors)
    if job.budget is not None and len(encoded.payload) > job.budget:
        _refuse(ledger, extra_bytes, max_bytes or 0, encoded.choice)
    write_atomically(out, [container.build(header, stored, encoded.payload)])
    seconds = calibration.seconds if calibration is not None else 0.0
    return Packed(out, ledger.total, ledger, encoded.decoded, encoded.choice, seconds)


def _around(
    recipe: Recipe, tokenizer: Tokenizer | None, meta: dict[str, Any] | None
) -> tuple[dict[str, Any], bytes, int]:
    """What a file holds beside its payload (header, tokenizer), and the bytes that it takes."""
    values, start = stored_values(recipe), Path(recipe.training.init_from).name
    if start:  # the name alone: the path says nothing elsewhere
        values["training"]["init_from"] = start
    header = {"codec": recipe.artifact.codec, "meta": meta or {}, "recipe": values}
    stored = tokenizer.to_bytes() if tokenizer is not None else b""
    return header, stored, len(container.build(header, stored, b""))


def packing_errors(
    tensors: Mapping[str, ArrayLike],
    recipe: Recipe,
    tokenizer: Tokenizer,
    calibration: Calibration,
    *,
    device: str = "cpu",
) -> dict[str, NDArray[np.float32]]:
    """What packing `tensors` under the recipe's cap would add to each large one; adds to the
    calibration's seconds.
    """
    *_, fixed = _around(recipe, tokenizer, None)
    kept = exported_tensors(tensors, make_plan(recipe.model))
    job = Job(
        tensors=kept,
        recipe=recipe,
        plan=make_plan(exported_recipe(recipe).model),
        budget=max(recipe.artifact.max_bytes - fixed, 0),
        **_measured(kept, recipe, calibration, None, None, device),
    )
    return CODECS[recipe.artifact.codec].errors(job)


def stage_report(report: Stage | None, name: str) -> Callable[[float], None] | None:
    """A report of one stage's share."""
    return None if report is None else lambda share: report(name, share)


def _measured(
    tensors: Mapping[str, NDArray[np.float32]],
    recipe: Recipe,
    calibration: Calibration | None,
    target_tax: float | None,
    on_stage: Stage | None,
    device: str,
) -> dict[str, Any]:
    """What a codec that needs calibration is given: sensitivities, and how a tax is measured."""
    model = build_model(recipe, tensors).to(device)
    batches = calibration or self_generated(model, seed=recipe.seed)
    report = stage_report(on_stage, "calibrating")
    found = measure(model, batches, on_progress=report)
    measured: dict[str, Any] = {"sensitivities": found}
    if target_tax is not None and batches.bytes_per_token is not None:
        measured["tax"] = _tax(model, batches, batches.bytes_per_token)
    return measured


def _tax(
    model: LanguageModel, batches: Calibration, bytes_per_token: float
) -> Callable[[Tensors], float]:
    """Bits per byte that other weights lose against the model's on the calibration batches."""
    reference, scale = mean_nll(model, batches), 1 / (log(2) * bytes_per_token)

    def tax(candidate: Tensors) -> float:
        load_tensors(model, candidate)
        return (mean_nll(model, batches) - reference) * scale

    return tax


def _refuse(ledger: Ledger, extra: int, limit: int, choice: dict[str, Any]) -> None:
    excess = ledger.total + extra - limit
    least = ", the smallest this codec can make," if choice.get("limit") == "smallest" else ""
    code = f" and {extra:,} B of code" if extra else ""
    raise CapacityError(
        f"the artifact of {ledger.total:,} B{least}{code} exceeds the cap of {limit:,} B by"
        f" {excess:,} B; largest tensors: {ledger.largest()}"
    )
