"""The codec "int-zlib": rounding to nearest per row, codes in zlib; everything else float16.

Matrices take `artifact.matrix_bits`, embeddings `artifact.embedding_bits`; convolutions, vectors
and scalars are float16.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Any

from niblick.codecs.base import CODECS, Codec, Encoded, Job, RoundingSpec, Sizes
from niblick.plan import Plan, Role

if TYPE_CHECKING:
    from niblick.codecs.quantized import Tensor
    from niblick.recipe import Recipe


class IntZlib(Codec):
    """Round to nearest per row and zlib: simple, needs no data, and what late QAT trains for."""

    name = "int-zlib"

    def encode(self, job: Job) -> Encoded:
        """One quality only: the recipe's bits; a budget is for the caller to compare with."""
        from niblick.codecs.nearest import write_nearest

        return write_nearest(job, self.rounding(job.recipe, job.plan))

    def decode(self, payload: bytes, recipe: Recipe, plan: Plan) -> dict[str, Tensor]:
        """The tensors of `encode`."""
        from niblick.codecs.nearest import read_nearest

        return read_nearest(payload, self.rounding(recipe, plan), plan)

    def sizes(self, recipe: Recipe, plan: Plan, other: int) -> Sizes:
        """One byte a code at most; about log2(4.13 m / 3.1) bits of a Gaussian row's codes."""
        specs, bound, estimate, rest = self.rounding(recipe, plan), 0, 0.0, 0
        for p in plan.exported:
            if p.name not in specs:
                rest += p.size
                continue
            bound += _stored(p.size) + _stored(2 * p.shape[0])
            entropy = max(log2(4.13 * specs[p.name].limit / 3.1), 1.0)
            estimate += (entropy + 0.15) / 8 * p.size + 1.7 * p.shape[0]
        return bound + _stored(2 * rest), round(estimate + 1.8 * rest)

    def rounding(self, recipe: Recipe, plan: Plan) -> dict[str, RoundingSpec]:
        """Per-row rounding of every matrix and embedding, with the recipe's bits."""
        artifact = recipe.artifact
        bits = {Role.MATRIX: artifact.matrix_bits, Role.EMBEDDING: artifact.embedding_bits}
        return {p.name: RoundingSpec(bits[p.role]) for p in plan.exported if p.role in bits}

    def describe(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """The codec by its own name, zlib with the bits of both roles."""
        artifact = recipe.artifact
        bits = {"matrix_bits": artifact.matrix_bits, "embedding_bits": artifact.embedding_bits}
        return super().describe(recipe) | {"compression": {"name": "zlib", **bits}}


def _stored(size: int) -> int:
    """Bytes of a length-prefixed zlib stream that did not compress."""
    return size + 5 * (size // 16_000 + 1) + 12


CODECS.register("int-zlib")(IntZlib())
