"""Combinations that a recipe must not have; each message names the key, the value and what is
accepted. No pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from niblick.components import MIXERS
from niblick.errors import RecipeError
from niblick.limits import MAX_LAYERS
from niblick.units import Duration

if TYPE_CHECKING:
    from niblick.recipe.model import ModelRecipe
    from niblick.recipe.schema import TrainingRecipe


def check_duration(text: str) -> str:
    """A duration as it is written; ValueError for what is none."""
    try:
        Duration.parse(text)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return text


def check_training(training: TrainingRecipe) -> None:
    """Raise ValueError for the first combination that cannot be trained."""
    length = training.sequence_length
    micro = training.micro_batch_tokens or training.batch_tokens
    if training.batch_tokens % length or micro % length or training.batch_tokens % micro:
        raise ValueError(
            f"batch_tokens {training.batch_tokens} must be a multiple of micro_batch_tokens"
            f" {micro}, and both of sequence_length {length}"
        )
    for key, value in (
        ("muon.momentum_warmup", training.muon.momentum_warmup),
        ("schedule.warmup", training.schedule.warmup),
        ("schedule.warmdown", training.schedule.warmdown),
    ):
        if isinstance(value, str) and not _is_steps(value):
            raise ValueError(
                f'{key} {value!r} must be a fraction of the budget or like "3500 steps"'
            )


def _is_steps(text: str) -> bool:
    try:
        return Duration.parse(text).unit == "steps"
    except RecipeError:
        return False


def check_model(model: ModelRecipe) -> None:
    """Raise ValueError for the first combination that cannot be built."""
    _check_widths(model)
    _check_stack(model)
    if not all(spec.mixer in MIXERS for segment in model.stack for spec in segment.blocks):
        return  # the plan says which layer is unknown; nothing can be said of the others
    layers = [spec for segment in model.stack for spec in segment.blocks * segment.loops]
    attention = [i for i, spec in enumerate(layers) if spec.attends]
    _check_layers(
        "attention.xsa_layers", model.attention.xsa_layers or (), attention, "an attention layer"
    )
    embedding = model.value_embedding
    _check_layers("value_embedding.layers", embedding.layers, attention, "an attention layer")
    _check_layers("sidecar.layers", model.sidecar.layers, range(len(layers)), "a layer")
    for name, section in (("value_embedding", model.value_embedding), ("sidecar", model.sidecar)):
        if section.enabled and not section.layers:
            raise ValueError(
                f"{name}.layers is empty though {name}.enabled is true; name at least one layer"
            )


def _check_widths(model: ModelRecipe) -> None:
    heads, groups = model.attention.heads, model.attention.kv_heads
    if model.dim % heads:
        raise ValueError(f"dim {model.dim} is not a multiple of attention.heads {heads}")
    if heads % groups:
        raise ValueError(
            f"attention.heads {heads} is not a multiple of attention.kv_heads {groups}"
        )
    if model.mlp_dim < 1:
        raise ValueError(f"mlp.width {model.mlp.width} of dim {model.dim} leaves no hidden unit")
    if model.bigram.enabled and not model.bigram.projection and model.bigram.width != model.dim:
        raise ValueError(
            f"bigram.width {model.bigram.width} must be dim {model.dim} without bigram.projection"
        )
    rope = model.rope_dims
    if rope % 2 or rope > model.head_dim:
        raise ValueError(
            f"attention.rope.dims {rope} must be even and at most the head width {model.head_dim}"
        )
    if model.attention.rope.train_length is not None and rope == 2:
        raise ValueError(
            "attention.rope.train_length needs rope.dims other than 2 (the exponent R/(R-2))"
        )
    if model.bos_id >= model.vocab_size:
        raise ValueError(f"bos_id {model.bos_id} is outside the vocabulary of {model.vocab_size}")


def _check_stack(model: ModelRecipe) -> None:
    names = [segment.name for segment in model.stack]
    if not names:
        raise ValueError("stack is empty; give at least one segment with layers")
    if len(set(names)) != len(names):
        raise ValueError(f"stack segment names {names} must differ")
    layers = sum(segment.loops * len(segment.blocks) for segment in model.stack)
    if layers > MAX_LAYERS:
        raise ValueError(
            f"stack has {layers:,} virtual layers; at most {MAX_LAYERS:,} are accepted"
        )


def _check_layers(key: str, layers: tuple[int, ...], allowed: range | list[int], kind: str) -> None:
    if len(set(layers)) != len(layers):
        raise ValueError(f"{key} {list(layers)} names a layer twice")
    known = set(allowed)
    for layer in layers:
        if layer not in known:
            raise ValueError(f"{key}: {layer} is not {kind}; accepted: {list(allowed)}")
