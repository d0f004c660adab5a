"""Artifact bytes before anything is trained: what it may need at most and needs typically."""

from __future__ import annotations

from niblick.codecs import CODECS
from niblick.codecs.base import Sizes
from niblick.plan import Plan
from niblick.recipe import Recipe

_HEADER: Sizes = (8192, 420)
# The challenge's tokenizer carries a normalisation map; a foreign one may too, uncompressed in the
# worst case.
_CHALLENGE_TOKENIZER: Sizes = (86_000, 85_627)
_FOREIGN_MAP = 300_000


def artifact_sizes(recipe: Recipe, plan: Plan) -> Sizes:
    """(bound, estimate) in bytes of the recipe's artifact, tokenizer and header included."""
    tokenizer = _tokenizer(recipe)
    payload = CODECS[recipe.artifact.codec].sizes(recipe, plan, _HEADER[1] + tokenizer[1])
    parts = (_HEADER, tokenizer, payload)
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def fixed_bytes(recipe: Recipe) -> int:
    """What header and tokenizer typically take of an artifact."""
    return _HEADER[1] + _tokenizer(recipe)[1]


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
