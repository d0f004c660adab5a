"""The model section: every switch and size of the three published models and their hybrids
(systems.md 1-3).

Layers are counted from 0 over *virtual* layers, the sequence of blocks that a token passes; a block
that is looped is one weight block and several virtual layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from niblick.limits import MAX_LAYERS, MAX_MEMBERS, MAX_ROPE_BASE, MAX_SEGMENTS, MAX_WIDTH
from niblick.recipe.base import FROM_LIST, Length, Real, Scale, Section, Width, section
from niblick.recipe.stack import StackRecipe

Layer = Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
Layers = Annotated[tuple[Layer, ...], Field(max_length=MAX_LAYERS), FROM_LIST]


class EmbeddingRecipe(Section):
    """Token embedding: normal with `std`; "overtone" then replaces its singular values by S_0
    k^-1/2.
    """

    init: Literal["normal", "overtone"] = "normal"
    std: Scale = 0.005


class BigramRecipe(Section):
    """Hashed bigram embedding of the current and previous input token (systems.md section 1).

    Without `projection` the table is as wide as the model and its rows are added as they are.
    """

    enabled: bool = False
    buckets: Annotated[int, Field(ge=2, le=1 << 24)] = 2048
    width: Width = 128
    projection: bool = True
    scale: Real = 0.05


class SmearRecipe(Section):
    """A learned gate that blends each embedding with the one before it."""

    enabled: bool = False


class ResidualMixRecipe(Section):
    """x_in = m0 x + m1 x0 before every layer; "phase" starts as sigmoid(3 (i/(n-1) - 1/2)) (section
    2).
    """

    enabled: bool = True
    init: Literal["identity", "phase"] = "identity"


class SkipRecipe(Section):
    """U-Net skips: the first n//2 outputs are pushed, and n//2 later layers pop one each.

    `pop`: "early" pops before the next n//2 layers, as all published models do; "late" before the
    last n//2. They differ for odd n only, where the last or the middle layer pops nothing.
    """

    enabled: bool = False
    pop: Literal["early", "late"] = "early"


class RopeRecipe(Section):
    """Partial rotary embedding on the first `dims` of a head.

    `dims`: a number, "full" (E) or "adaptive" (E up to 32, else 3E/4 rounded down to even).
    `frequency_dims`: the F in base^(-2j/F): "head" (E), "rotary" (`dims`) or a number.
    `train_length`: beyond this declared context the base is rescaled (section 3), in training too
    where the recipe's context is longer; null switches that off.
    """

    dims: Annotated[int, Field(ge=0, le=MAX_WIDTH)] | Literal["full", "adaptive"] = 16
    frequency_dims: Width | Literal["head", "rotary"] = "rotary"
    base: Annotated[float, Field(gt=1, le=MAX_ROPE_BASE, strict=False)] = 10000.0
    train_length: Length | None = None


class AttentionRecipe(Section):
    """Grouped-query attention with QK norm, gains, rotary, XSA, shifts and the local value
    residual.
    """

    heads: Width = 8
    kv_heads: Width = 4
    qk_norm: bool = True
    q_gain: Real | None = 1.5
    k_gain: bool = False
    kv_shift: bool = False
    local_value: bool = False
    xsa_last: Annotated[int, Field(ge=0, le=MAX_LAYERS)] = 0
    xsa_layers: Layers | None = None
    rope: RopeRecipe = section()


class ValueEmbeddingRecipe(Section):
    """A second token table whose projection is added to the values of the listed attention
    layers.
    """

    enabled: bool = False
    layers: Layers = ()
    width: Width = 128
    scale: Real = 0.1
    std: Real = 0.02


class TokenShiftRecipe(Section):
    """RWKV-style channel gate on the current and previous position; `mix` starts both
    interpolations.
    """

    mix: Real = 0.5


class MlpRecipe(Section):
    """W2 act(W1 u)^2 with act = leaky ReLU (`slope`) or ReLU; `width` in units of the model
    width.
    """

    width: Annotated[float, Field(gt=0, le=64, strict=False)] = 3.0
    activation: Literal["leaky-relu-squared", "relu-squared"] = "leaky-relu-squared"
    slope: Real = 0.5


class SidecarRecipe(Section):
    """Shared sparse sidecar after the listed virtual layers, one set of weights for all sites
    (section 3).
    """

    enabled: bool = False
    layers: Layers = ()
    width: Width = 48
    kernel: Annotated[int, Field(ge=2, le=9)] = 3


class MtpRecipe(Section):
    """Multi-token-prediction heads, used in training only and dropped at export."""

    heads: Annotated[int, Field(ge=0, le=16)] = 0
    weight: Real = 0.2


class ModelRecipe(Section):
    """Everything that decides the shape and the initialisation of a LanguageModel.

    Of an ensemble of `members`, each is a model of this shape; their probabilities are averaged.
    With `shared_tables` they look tokens up in the same embeddings.
    """

    members: Annotated[int, Field(ge=1, le=MAX_MEMBERS)] = 1
    shared_tables: bool = False
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 1024
    bos_id: Annotated[int, Field(ge=0, lt=65536)] = 1
    dim: Width = 512
    context: Length = 1024
    stack: Annotated[tuple[StackRecipe, ...], Field(max_length=MAX_SEGMENTS), FROM_LIST]
    scalars: Literal["block", "virtual"] = "block"
    depth_scale: bool = True
    document_mask: bool = True
    document_attention: Literal["across", "within"] = "across"
    tied: bool = True
    softcap: Scale | None = 30.0
    linear_init: Literal["orthogonal", "torch"] = "orthogonal"
    embedding: EmbeddingRecipe = section()
    bigram: BigramRecipe = section()
    smear: SmearRecipe = section()
    residual_mix: ResidualMixRecipe = section()
    skips: SkipRecipe = section()
    attention: AttentionRecipe = section()
    value_embedding: ValueEmbeddingRecipe = section()
    token_shift: TokenShiftRecipe = section()
    mlp: MlpRecipe = section()
    sidecar: SidecarRecipe = section()
    mtp: MtpRecipe = section()

    @property
    def depth(self) -> int:
        """Number of virtual layers."""
        return sum(segment.loops * len(segment.blocks) for segment in self.stack)

    @property
    def head_dim(self) -> int:
        """Width E of one head."""
        return self.dim // self.attention.heads

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the channel mixer."""
        return round(self.dim * self.mlp.width)

    @property
    def rope_dims(self) -> int:
        """Number R of rotated dimensions of a head."""
        dims, head = self.attention.rope.dims, self.head_dim
        if dims == "full":
            return head
        if dims == "adaptive":
            return head if head <= 32 else (3 * head // 4) // 2 * 2
        return dims

    @property
    def rope_frequency_dims(self) -> int:
        """The F of the rotary frequencies base^(-2j/F)."""
        choice = self.attention.rope.frequency_dims
        return (
            {"head": self.head_dim, "rotary": max(self.rope_dims, 1)}[choice]
            if isinstance(choice, str)
            else choice
        )

    @model_validator(mode="after")
    def _fits_together(self) -> ModelRecipe:
        from niblick.recipe.checks import check_model

        check_model(self)
        return self
