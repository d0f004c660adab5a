"""The codec "rd": water-filled steps, error feedback, trellis-coded rounding, adaptive coding.

Every parameter is coded by role, vectors and scalars included. Steps come from the Fisher
information measured on calibration batches, rounding weighs error against the coder's own prices,
and one number, delta, trades bytes for loss over the whole model; the solver finds the delta that
fills a byte budget or meets a loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.codecs.base import (
    CODECS,
    QUANTIZED_ROLES,
    Codec,
    Encoded,
    Job,
    Sizes,
    TensorRow,
    apportion,
    order0_bits,
)
from niblick.errors import NiblickError
from niblick.plan import Plan

if TYPE_CHECKING:
    from niblick.codecs.payload import Written
    from niblick.codecs.quantized import Floats, Tensor
    from niblick.codecs.rounder import Candidate
    from niblick.codecs.symbols import Tables
    from niblick.recipe import Recipe

DEFAULT_BITS = 4.0
_USUAL = 5  # attempts that filling a budget takes, the last coding counted as one


class RateDistortion(Codec):
    """Fits a byte budget from below, or a loss; by default half a byte per parameter."""

    name = "rd"
    needs_calibration = fills_cap = tells_errors = True

    def encode(self, job: Job) -> Encoded:
        """Round and code until the payload fills the budget or meets the loss."""
        from niblick.codecs.payload import write_payload

        candidate, choice = self._round(job)
        return _encoded(candidate, write_payload(candidate), choice, job.plan)

    def errors(self, job: Job) -> dict[str, Floats]:
        """What the candidate that fills the budget adds to the tensors of the large roles."""
        from niblick.codecs.quantized import dequantized

        candidate, _ = self._round(job)
        return {
            p.name: dequantized(candidate.tensors[p.name]) - job.tensors[p.name]
            for p in job.plan.exported
            if p.role in QUANTIZED_ROLES
        }

    def _round(self, job: Job) -> tuple[Candidate, dict[str, Any]]:
        """The candidate, and what was chosen."""
        from niblick.codecs.allocation import fill_budget, meet_tax
        from niblick.codecs.payload import write_payload
        from niblick.codecs.rounder import Rounder

        attempts = 0

        def size(candidate: Candidate) -> tuple[int, Tables]:
            nonlocal attempts
            written = write_payload(candidate, thorough=False)
            attempts += 1
            if job.on_progress is not None:
                job.on_progress(attempts / (attempts + max(1, _USUAL - attempts)))
            return len(written.payload), written.tables

        rounder = Rounder(job.plan, job.tensors, job.sensitivities)
        if job.target_tax is None:
            most = round(DEFAULT_BITS * job.plan.parameter_count / 8)
            budget = most if job.budget is None else job.budget
            return fill_budget(rounder, budget, size)
        if job.tax is None:
            raise NiblickError(
                "a target tax in bits per byte needs calibration text of known length"
            )
        return meet_tax(rounder, job.tax, job.target_tax, job.budget, size)

    def decode(self, payload: bytes, recipe: Recipe, plan: Plan) -> dict[str, Tensor]:
        """The tensors of `encode`, bit for bit, on any machine."""
        from niblick.codecs.payload import read_payload

        return read_payload(payload, plan)

    def sizes(self, recipe: Recipe, plan: Plan, other: int) -> Sizes:
        """The room under the cap, which the solver fills, within the largest and smallest file.

        The largest has about nine bits a weight; the smallest is little but the tensors' grids.
        """
        rows = [p.shape[0] if p.shape else 1 for p in plan.exported]
        sides = sum(r + p.size // max(r, 1) for r, p in zip(rows, plan.exported, strict=True))
        largest = round(plan.parameter_count * 9.5 / 8) + sides
        smallest = sides // 2 + 4 * len(plan.exported) + round(0.03 * plan.parameter_count / 8)
        room = max(recipe.artifact.max_bytes - other, 0)
        filled = max(min(largest, room), smallest)
        return filled, filled

    def describe(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """Its names in the field; it has no settings but the cap."""
        return {
            "quantization": {"name": "rate-distortion trellis-coded quantization"},
            "compression": {"name": "context-modelled entropy coding of every tensor"},
        }


def _encoded(candidate: Candidate, written: Written, choice: dict[str, Any], plan: Plan) -> Encoded:
    from niblick.codecs.payload import HEAD_BYTES

    body = len(written.payload) - HEAD_BYTES
    prices = written.bits
    kinds = ("symbols", "scales", "models")
    sums = [round(1000 * sum(getattr(bits, kind) for bits in prices.values())) for kind in kinds]
    parts = dict(zip(kinds, apportion(body, sums), strict=True)) | {"payload_head": HEAD_BYTES}
    sizes = apportion(body, [round(1000 * bits.total) for bits in prices.values()])
    rows = {
        m.parameter.name: TensorRow(size, m.parameter.size, order0_bits(m.symbols))
        for m, size in zip(candidate.members, sizes, strict=True)
    }
    told = {
        **choice,
        "delta": candidate.delta,
        "coder_excess": round(written.coder_overhead, 6),
        "predicted_tax_nats": round(candidate.predicted, 6),
        "escape_bytes": written.escapes,
        "plain_bytes": written.plain,
        "bits_by_role": _by_role(plan, rows),
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
