"""The codec "rd": water-filled steps, error feedback, trellis-coded rounding, adaptive entropy
coding.

Every parameter is coded by role, vectors and scalars included. Steps come from the Fisher
information measured on calibration batches, rounding weighs error against the coder's own prices,
and one number, delta, trades bytes for loss over the whole model; the solver finds the delta that
fills a byte budget or meets a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from niblick.codecs.allocation import fill_budget, meet_tax
from niblick.codecs.base import CODECS, Encoded, Job, TensorRow, share
from niblick.codecs.entropy import order0_bits
from niblick.codecs.payload import HEAD_BYTES, Written, read_payload, write_payload
from niblick.codecs.rounder import Candidate, Rounder
from niblick.codecs.symbols import Tables
from niblick.compression.calibration import Calibration, mean_nll, self_generated
from niblick.compression.sensitivity import measure
from niblick.errors import NiblickError
from niblick.model import LanguageModel, Steps
from niblick.plan import Plan
from niblick.recipe import Recipe

DEFAULT_BITS = 4.0


def _size(candidate: Candidate) -> tuple[int, Tables]:
    written = write_payload(candidate, thorough=False)
    return len(written.payload), written.tables


@dataclass(frozen=True)
class RateDistortion:
    """Fits a byte budget from below, or a loss; needs calibration batches, or writes its own
    text.
    """

    name: str = "rd"
    needs_calibration: bool = True

    def encode(self, job: Job) -> Encoded:
        """Measure, round and code until the payload fills the budget (default: half a byte per
        parameter).
        """
        model = _model(job)
        calibration = job.calibration or Calibration(self_generated(model, seed=job.recipe.seed))
        rounder = Rounder(job.plan, job.tensors, measure(model, calibration, seed=job.recipe.seed))
        if job.target_tax is not None:
            tax = _tax(model, calibration, job.tensors)
            candidate, choice = meet_tax(rounder, tax, job.target_tax, job.budget, _size)
        else:
            budget = (
                job.budget
                if job.budget is not None
                else round(DEFAULT_BITS * job.plan.parameter_count / 8)
            )
            candidate, choice = fill_budget(rounder, budget, _size)
        return _encoded(candidate, write_payload(candidate), choice, job)

    def decode(
        self, payload: bytes, recipe: Recipe, plan: Plan, steps: Steps | None = None
    ) -> dict[str, Tensor]:
        """The tensors of `encode`, bit for bit, on any machine."""
        return read_payload(payload, plan, steps)


def _model(job: Job) -> LanguageModel:
    model = LanguageModel(job.plan.model, seed=None)
    model.load_state_dict(job.tensors)
    return model.eval()


def _tax(
    model: LanguageModel, calibration: Calibration, tensors: dict[str, Tensor]
) -> Callable[[dict[str, Tensor]], float]:
    """Bits per byte that other weights lose against `tensors` on the calibration batches."""
    if calibration.bytes_per_token is None:
        raise NiblickError("a target tax in bits per byte needs calibration text of known length")
    scale = 1 / (np.log(2.0) * calibration.bytes_per_token)
    reference = mean_nll(model, calibration)

    def tax(candidate: dict[str, Tensor]) -> float:
        model.load_state_dict(candidate)
        found = (mean_nll(model, calibration) - reference) * scale
        model.load_state_dict(tensors)
        return float(found)

    return tax


def _encoded(candidate: Candidate, written: Written, choice: dict[str, Any], job: Job) -> Encoded:
    body = len(written.payload) - HEAD_BYTES
    order = list(written.bits)
    kinds = [
        round(1000 * sum(getattr(bits, kind) for bits in written.bits.values()))
        for kind in ("symbols", "scales", "models")
    ]
    symbols, scales, models = share(body, kinds)
    parts = {"symbols": symbols, "scales": scales, "models": models, "payload_head": HEAD_BYTES}
    sizes = share(body, [round(1000 * written.bits[name].total) for name in order])
    rows = {
        name: TensorRow(size, job.tensors[name].numel(), order0_bits(candidate.symbols[name]))
        for name, size in zip(order, sizes, strict=True)
    }
    told = {
        **choice,
        "delta": candidate.delta,
        "coder_excess": round(written.distance, 6),
        "predicted_tax_nats": round(candidate.predicted, 6),
        "escape_bytes": written.escapes,
        "plain_bytes": written.plain,
        "bits_by_role": _by_role(job.plan, rows),
    }
    return Encoded(written.payload, parts, rows, candidate.tensors, told)


def _by_role(plan: Plan, rows: dict[str, TensorRow]) -> dict[str, float]:
    """Bits per parameter that each role was given."""
    sums: dict[str, list[int]] = {}
    for parameter in plan.exported:
        entry = sums.setdefault(parameter.role.value, [0, 0])
        entry[0] += 8 * rows[parameter.name].bytes
        entry[1] += parameter.size
    return {role: round(bits / max(count, 1), 3) for role, (bits, count) in sums.items()}


CODECS.register("rd")(RateDistortion())
