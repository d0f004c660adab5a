"""Artifact bytes before anything is trained: what each codec may need at most and needs typically.
No torch.

The bound holds for any weights; the estimate supposes trained, roughly Gaussian ones.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2

from niblick.components.base import Parameter, Role
from niblick.plan.expand import Plan
from niblick.recipe import Recipe
from niblick.registry import Registry

Sizes = tuple[int, int]
CODEC_SIZES: Registry[Callable[[Recipe, Plan], Sizes]] = Registry("codec")
_HEADER: Sizes = (8192, 420)
# The challenge's tokenizer carries a normalisation map; a foreign one may too, uncompressed in the
# worst case.
_CHALLENGE_TOKENIZER: Sizes = (86_000, 85_627)
_FOREIGN_MAP = 300_000


def artifact_sizes(recipe: Recipe, plan: Plan) -> Sizes:
    """(bound, estimate) in bytes of the artifact that `recipe` leads to, tokenizer and header
    included.
    """
    parts = (_HEADER, _tokenizer(recipe), CODEC_SIZES[recipe.artifact.codec](recipe, plan))
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def _tokenizer(recipe: Recipe) -> Sizes:
    """Pieces of at most 255 bytes; typically two to three bytes each after compression."""
    if recipe.data.tokenizer == "bytes":
        return 16, 16
    if recipe.data.tokenizer == "fineweb-1024":
        return _CHALLENGE_TOKENIZER
    learned = max(recipe.model.vocab_size - 258, 0)
    if recipe.data.tokenizer.startswith("train"):
        return 256 * learned + 512, round(2.6 * learned) + 64
    return 256 * recipe.model.vocab_size + _FOREIGN_MAP, _CHALLENGE_TOKENIZER[1]


def _rows(parameter: Parameter) -> int:
    return parameter.shape[0] if parameter.shape else 1


@CODEC_SIZES.register("int-zlib")
def int_zlib_sizes(recipe: Recipe, plan: Plan) -> Sizes:
    """One byte a code at most; a Gaussian row scaled by its largest value has about log2(4.13 m /
    3.1) bits.
    """
    bits = {
        Role.MATRIX: recipe.artifact.matrix_bits,
        Role.EMBEDDING: recipe.artifact.embedding_bits,
    }
    bound, estimate = 0, 0.0
    rest = 0
    for parameter in plan.exported:
        if parameter.role not in bits:
            rest += parameter.size
            continue
        limit = (1 << (bits[parameter.role] - 1)) - 1
        bound += _stored(parameter.size) + _stored(2 * _rows(parameter))
        entropy = max(log2(4.13 * limit / 3.1), 1.0)
        estimate += (entropy + 0.15) / 8 * parameter.size + 1.7 * _rows(parameter)
    return bound + _stored(2 * rest), round(estimate + 1.8 * rest)


@CODEC_SIZES.register("rd")
def rd_sizes(recipe: Recipe, plan: Plan) -> Sizes:
    """Never above the cap, which the solver fills from below, unless even the smallest file exceeds
    it.

    The largest file has about nine bits a weight; the smallest is little but the grids of the
    tensors.
    """
    scales = sum((_rows(p) + p.size // max(_rows(p), 1)) for p in plan.exported)
    largest = round(plan.parameter_count * 9.5 / 8) + scales
    smallest = scales // 2 + 4 * len(plan.exported) + round(0.03 * plan.parameter_count / 8)
    fixed = _HEADER[1] + _tokenizer(recipe)[1]
    room = max(recipe.artifact.max_bytes - fixed, 0)
    return max(min(largest, room), smallest), max(min(largest, room), smallest)


def _stored(size: int) -> int:
    """Bytes of a length-prefixed zlib stream that did not compress."""
    return size + 5 * (size // 16_000 + 1) + 12
