"""A model with every kind of part that a shipped recipe has, in few layers, which compile fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from niblick.model import LanguageModel
from niblick.recipe import load_recipe

EVERYTHING = [
    "model.dim=64",
    "model.context=160",
    "model.vocab_size=512",
    "model.stack=["
    '{layers=["token-shift", "window:48"]}, {name="again_blocks", layers=["full"], loops=2}]',
    "model.scalars=virtual",
    "model.skips.enabled=true",
    "model.document_attention=within",
    "model.attention.k_gain=true",
    "model.attention.kv_shift=true",
    "model.attention.local_value=true",
    "model.attention.rope.dims=8",
    "model.value_embedding.layers=[1, 3]",
    "model.sidecar={enabled=true, layers=[2, 3], width=24}",
    "model.mtp.heads=1",
]
ACROSS = [  # windows and whole rows alone, from one document into the next
    "model.document_attention=across",
    'model.stack=[{layers=["window:48", "full"]}]',
    "model.value_embedding={enabled=false, layers=[]}",
    "model.sidecar={enabled=false, layers=[]}",
    "model.mtp.heads=0",
]
WIDE = [  # as the full-size recipes are
    "model.dim=512",
    "model.context=1024",
    "model.vocab_size=1024",
    "model.attention.heads=8",
    "model.attention.kv_heads=4",
    "model.attention.rope.dims=16",
]


def everything(changes: Sequence[str] = ()) -> LanguageModel:
    """That model, longer than a block of flex_attention, none of its parts at zero."""
    recipe = load_recipe("pocket", [*EVERYTHING, *changes])
    model = LanguageModel(recipe.model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) / 20
            )
    return model


def batch(model: LanguageModel, length: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (2, length), with a few documents."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.recipe.vocab_size, (2, length + 1), generator=generator)
    tokens[:, 40], tokens[1, 90] = model.recipe.bos_id, model.recipe.bos_id
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
