"""Random model sections for property tests, and weights of which none is left at zero."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from niblick.model import LanguageModel, new_model
from niblick.plan import Role
from niblick.recipe.model import ModelRecipe

BOS = 1
VOCAB = 24
LAYERS = ["token-shift", "window:1", "window:2", "window:5", "full", "token-shift*2", "full*2"]


@st.composite
def model_recipes(draw: st.DrawFn, **fixed: Any) -> ModelRecipe:
    """A model section with 1 to about 9 virtual layers; `fixed` sets top-level keys."""
    heads, groups = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]))
    head = draw(st.sampled_from([4, 6]))
    flags = draw(
        st.fixed_dictionaries(
            {name: st.booleans() for name in ("bigram", "mapped", "smear", "skips", "mask", "mix")}
        )
    )
    stack = draw(stacks())
    bigram = {"width": 3} if flags["mapped"] else {"width": heads * head, "projection": False}
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "dim": heads * head,
        "context": draw(st.sampled_from([1, 3, 8, 40])),
        "stack": stack,
        "scalars": draw(st.sampled_from(["block", "virtual"])),
        "depth_scale": draw(st.booleans()),
        "document_mask": flags["mask"],
        "document_attention": draw(st.sampled_from(["across", "within"])),
        "tied": draw(st.booleans()),
        "softcap": draw(st.sampled_from([None, 30.0, 3.0])),
        "bigram": {"enabled": flags["bigram"], "buckets": 32, **bigram},
        "smear": {"enabled": flags["smear"]},
        "residual_mix": {"enabled": flags["mix"]},
        "skips": {"enabled": flags["skips"], "pop": draw(st.sampled_from(["early", "late"]))},
        "mlp": {"width": draw(st.sampled_from([1, 2.5])), "activation": draw(activations())},
        "attention": draw(attentions(heads, groups, head)),
    }
    values |= draw(extras(stack))
    return ModelRecipe.model_validate(values | fixed)


def activations() -> st.SearchStrategy[str]:
    return st.sampled_from(["leaky-relu-squared", "relu-squared"])


def stacks() -> st.SearchStrategy[list[dict[str, Any]]]:
    """One looped segment, alone or between an entry and an exit."""
    layers = st.lists(st.sampled_from(LAYERS), min_size=1, max_size=2)
    middle = st.builds(
        lambda x, n: {"name": "shared_blocks", "loops": n, "layers": x}, layers, st.integers(1, 2)
    )
    ends = st.sampled_from([None, "token-shift", "window:3", "full"])

    def join(first: str | None, segment: dict[str, Any], last: str | None) -> list[dict[str, Any]]:
        entry = [{"name": "entry_blocks", "layers": [first]}] if first else []
        return [*entry, segment, *([{"name": "exit_blocks", "layers": [last]}] if last else [])]

    return st.builds(join, ends, middle, ends)


def attentions(heads: int, groups: int, head: int) -> st.SearchStrategy[dict[str, Any]]:
    rope = {
        "dims": st.sampled_from([0, 4, "adaptive"] + (["full"] if head > 2 else [])),
        "frequency_dims": st.sampled_from(["head", "rotary", 8]),
        "base": st.sampled_from([100.0, 10000.0]),
        "train_length": st.sampled_from([None, 4, 30]),
    }
    return st.fixed_dictionaries(
        {
            "heads": st.just(heads),
            "kv_heads": st.just(groups),
            "qk_norm": st.booleans(),
            "q_gain": st.sampled_from([None, 1.5]),
            "k_gain": st.booleans(),
            "kv_shift": st.booleans(),
            "local_value": st.booleans(),
            "xsa_last": st.integers(0, 9),
            "rope": st.fixed_dictionaries(rope),
        }
    )


@st.composite
def extras(draw: st.DrawFn, stack: list[dict[str, Any]]) -> dict[str, Any]:
    """A sidecar after some layers, value embeddings at some of the attention layers."""
    mixers = list(mixer_names(stack))
    attention = [i for i, name in enumerate(mixers) if name != "token-shift"]
    found: dict[str, Any] = {}
    sites = draw(st.lists(st.sampled_from(range(len(mixers))), unique=True, max_size=3))
    if sites:
        found["sidecar"] = {
            "enabled": True,
            "layers": sites,
            "width": 5,
            "kernel": draw(st.integers(2, 4)),
        }
    chosen = (
        draw(st.lists(st.sampled_from(attention), unique=True, max_size=2)) if attention else []
    )
    if chosen:
        found["value_embedding"] = {"enabled": True, "layers": chosen, "width": 3}
    return found


def mixer_names(stack: list[dict[str, Any]]) -> list[str]:
    """The mixers of the virtual layers, read off the notation."""
    names = []
    for segment in stack:
        blocks = [
            text.split("*")[0].split(":")[0]
            for text in segment["layers"]
            for _ in range(_count(text))
        ]
        names += blocks * segment.get("loops", 1)
    return names


def _count(text: str) -> int:
    return int(text.partition("*")[2] or 1)


def scattered(model: ModelRecipe, seed: int = 0) -> LanguageModel:
    """A model whose every parameter is random and moderate, so that no part is silent."""
    built = new_model(model, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    roles = {p.name: p.role for p in built.plan.parameters}
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if roles[name] in (Role.MATRIX, Role.HEAD):
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            elif roles[name] in (Role.EMBEDDING, Role.CONVOLUTION):
                parameter.copy_(noise * 0.4)
            else:
                parameter.add_(noise * 0.3)
    return built.eval()


def tokens(length: int, *, batch: int = 2, seed: int = 0, bos_every: int = 6) -> torch.Tensor:
    """Random ids (B, T) with a BOS every few positions."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (batch, length), generator=generator)
    starts = torch.rand((batch, length), generator=generator) < 1 / bos_every
    return ids.masked_fill(starts, BOS)
