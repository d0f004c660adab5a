"""The package's model equals a slow reference written from the spec, for every mixer and part and
for random plans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.model import LanguageModel
from niblick.recipe.model import ModelRecipe
from parity import reference
from parity.published import MODELS, read
from property.plans import VOCAB, model_recipes, scattered, tokens

TOLERANCE = {"reference": 2e-5, "published": 1e-4}
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "dim": 16,
    "context": 12,
    "document_mask": True,
    "attention": {"heads": 4, "kv_heads": 2, "rope": {"dims": 4}},
    "stack": [{"layers": ["full"]}],
}
PARTS: dict[str, dict[str, Any]] = {
    "token shift": {"stack": [{"layers": ["token-shift*2"]}]},
    "full attention": {"stack": [{"layers": ["full*2"]}]},
    "window attention": {"stack": [{"layers": ["window:3", "window:1"]}]},
    "attention beyond the context": {"context": 5},
    "attention within documents": {
        "document_attention": "within",
        "stack": [{"layers": ["full", "window:4"]}],
    },
    "exclusive self attention": {"attention": BASE["attention"] | {"xsa_last": 1}},
    "shifted keys and values": {
        "attention": BASE["attention"] | {"kv_shift": True, "k_gain": True}
    },
    "local value residual": {
        "attention": BASE["attention"] | {"local_value": True, "xsa_layers": [0]}
    },
    "rescaled rotary base": {
        "attention": BASE["attention"] | {"rope": {"dims": 4, "train_length": 7}}
    },
    "frequencies of the head": {
        "attention": BASE["attention"] | {"rope": {"dims": 2, "frequency_dims": "head"}}
    },
    "no norm, no gain, no rotary": {
        "attention": {
            "heads": 2,
            "kv_heads": 1,
            "qk_norm": False,
            "q_gain": None,
            "rope": {"dims": 0},
        }
    },
    "value embedding": {"value_embedding": {"enabled": True, "layers": [0], "width": 6}},
    "bigram embedding": {"bigram": {"enabled": True, "buckets": 7, "width": 5}},
    "bigram embedding without projection": {
        "bigram": {"enabled": True, "buckets": 7, "width": 16, "projection": False}
    },
    "smear": {"smear": {"enabled": True}},
    "sidecar at two sites": {
        "stack": [{"layers": ["full", "token-shift"]}],
        "sidecar": {"enabled": True, "layers": [0, 1], "width": 6},
    },
    "skips over loops": {
        "stack": [
            {"layers": ["full", "token-shift"], "loops": 2},
            {"name": "exit_blocks", "layers": ["full"]},
        ],
        "scalars": "virtual",
        "skips": {"enabled": True, "pop": "late"},
    },
    "relu squared": {"mlp": {"width": 2, "activation": "relu-squared"}},
    "a head of its own": {"tied": False, "softcap": None},
}


def compare(model: LanguageModel, ids: torch.Tensor, context: int | None = None) -> None:
    weights = {name: p.detach().double().numpy() for name, p in model.state_dict().items()}
    with torch.no_grad():
        found, _ = model(ids, context=context)
    values = model.recipe.model_dump(mode="json")
    wanted = np.stack([reference.logits(values, weights, row.tolist(), context) for row in ids])
    limit = TOLERANCE["reference"] * max(1.0, float(np.abs(wanted).max()))
    assert np.abs(found.numpy() - wanted).max() < limit


@pytest.mark.parametrize("part", PARTS)
def test_each_part_equals_the_reference(part: str) -> None:
    model = scattered(ModelRecipe.model_validate(BASE | PARTS[part]), seed=3)
    compare(model, tokens(11, seed=5), context=PARTS[part].get("context"))


@pytest.mark.parametrize("part", PARTS)
def test_each_part_without_document_masking_equals_the_reference(part: str) -> None:
    model = scattered(
        ModelRecipe.model_validate(BASE | PARTS[part] | {"document_mask": False}), seed=4
    )
    compare(model, tokens(11, seed=6))


@settings(max_examples=25, deadline=None)
@given(model=model_recipes(), length=st.integers(1, 13), seed=st.integers(0, 99))
def test_random_plans_equal_the_reference(model: ModelRecipe, length: int, seed: int) -> None:
    compare(scattered(model, seed), tokens(length, seed=seed), context=model.context)


@pytest.mark.parametrize("name", MODELS)
def test_published_logits_are_reproduced(name: str) -> None:
    section, weights, ids, wanted = read(name)
    model = LanguageModel(ModelRecipe.model_validate(section), seed=None)
    model.load_state_dict(
        {key: torch.from_numpy(value) for key, value in weights.items()}, strict=True
    )
    with torch.no_grad():
        found, _ = model(torch.from_numpy(ids))
    assert np.abs(found.numpy() - wanted).max() < TOLERANCE["published"]


@pytest.mark.parametrize("name", ["token_shift", "depth_recurrent", "sidecar"])
def test_the_reference_itself_reproduces_published_logits(name: str) -> None:
    section, weights, ids, wanted = read(name)
    values = ModelRecipe.model_validate(section).model_dump(mode="json")
    short = ids[:1, :48]
    found = reference.logits(
        values, {k: v.astype(np.float64) for k, v in weights.items()}, short[0].tolist()
    )
    assert np.abs(found - wanted[0, :48]).max() < TOLERANCE["published"]
