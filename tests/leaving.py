"""Small models as files, for tests of the formats that models leave in."""

from __future__ import annotations

from pathlib import Path

import torch

import niblick
from niblick.artifact import save_checkpoint
from niblick.model import new_model
from niblick.recipe import load_recipe
from niblick.text.tokenizer import Tokenizer, load_tokenizer

FAMILIES = ("token-shift", "depth-recurrent", "sidecar", "token-shift+members")
SMALL = ["model.dim=32", "model.context=24", "model.attention.heads=2"]
SMALL += ["model.attention.kv_heads=1", "model.attention.rope.dims=8"]
# What llama.cpp has a place for: its architecture "arcee".
LLAMA = ['model.stack=[{layers=["full*3"]}]', "model.mlp.activation=relu-squared"]
LLAMA += ["model.softcap=null", "model.attention.qk_norm=false", "model.bigram.enabled=false"]
LLAMA += ["model.smear.enabled=false", "model.residual_mix.enabled=false"]
LLAMA += ["model.value_embedding={enabled=false}", "model.attention.xsa_last=0"]
LLAMA += ["model.attention.k_gain=true", "model.attention.rope.frequency_dims=head"]


def saved(
    folder: Path, family: str, *overrides: str, tokenizer: Tokenizer | None = None
) -> niblick.Model:
    """A small model of a family with no part left at zero, as a checkpoint in `folder`; with
    "+members" an ensemble of three.
    """
    family, _, several = family.partition("+")
    overrides = (*overrides, "model.members=3") if several else overrides
    own = tokenizer or load_tokenizer("bytes")
    size = f"model.vocab_size={own.vocab_size}"
    recipe = load_recipe(family, [*SMALL, size, "model.mtp.heads=0", *overrides])
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in new_model(recipe.model, seed=0).state_dict().items()
    }
    path = folder / f"{family}.safetensors"
    save_checkpoint(path, tensors=tensors, recipe=recipe, tokenizer=own, meta={})
    return niblick.load(path)
