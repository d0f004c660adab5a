"""A model with every kind of part that a shipped recipe has, in few layers, which compile fast, and
what its faster forms are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from niblick.components.banded import reference_attention
from niblick.model import LanguageModel
from niblick.objective import training_loss
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


def assert_a_plain_step(changes: Sequence[str], forms: Any, compile_: Callable[[Any], Any]) -> None:
    """The compiled loss of that model in these `forms`, and its gradients, are the plain ones."""
    model = everything(changes)
    inputs, targets = batch(model)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return training_loss(model, x, y)

    found = []
    for chosen, call in ((None, loss_of), (forms, compile_(loss_of))):
        model.kernels = chosen
        loss, nll = call(inputs, targets)
        loss.backward()
        found.append([loss.detach(), nll.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad(set_to_none=True)
    for plain, fast in zip(*found, strict=True):
        assert (plain is None) == (fast is None)
        if plain is not None:
            torch.testing.assert_close(fast, plain, rtol=2e-3, atol=2e-5)


def assert_readable_attention(
    attend: Callable[..., torch.Tensor],
    first: torch.Tensor | None,
    *,
    length: int,
    width: int,
    span: int,
    seed: int,
) -> None:
    """`attend(q, k, v, span)` gives the numbers and gradients of the readable mask."""
    results = []
    for fast in (True, False):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (
            torch.randn(2, heads, length, width, generator=generator).requires_grad_()
            for heads in (4, 2, 2)
        )
        if fast:
            out = attend(q, k, v, span)
        else:
            repeated = (t.repeat_interleave(2, dim=1) for t in (k, v))
            out = reference_attention(q, *repeated, span, first=first)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for fast_, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast_, slow, rtol=1e-4, atol=5e-6)
