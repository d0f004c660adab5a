"""The small siblings keep every part of the full recipes, and learn."""

from __future__ import annotations

import re

import pytest
import torch

from niblick.artifact.sizes import artifact_sizes
from niblick.model import LanguageModel
from niblick.objective import training_loss
from niblick.plan import Plan, make_plan
from niblick.recipe import load_recipe

FULL = ("token-shift", "depth-recurrent", "sidecar")
COUNTS = {"token-shift": 1_753_226, "depth-recurrent": 987_680, "sidecar": 1_496_165}


def parts(plan: Plan) -> set[str]:
    """Names of the parameters without layer numbers."""
    return {re.sub(r"\.\d+", "", p.name) for p in plan.parameters}


@pytest.mark.parametrize("name", FULL)
def test_a_small_sibling_has_every_part_of_the_full_recipe(name: str) -> None:
    full, small = (make_plan(load_recipe(n).model) for n in (name, f"{name}-small"))
    assert parts(full) == parts(small)
    assert {layer.mixer for layer in full.layers} == {layer.mixer for layer in small.layers}
    for used in ("xsa", "value_embedding", "push"):
        assert any(getattr(x, used) for x in full.layers) == any(
            getattr(x, used) for x in small.layers
        )
    assert len({x.sidecar_site for x in full.layers}) == len({x.sidecar_site for x in small.layers})
    assert (small.weight_blocks < len(small.layers)) == (full.weight_blocks < len(full.layers))


@pytest.mark.parametrize("name", FULL)
def test_a_small_sibling_is_small_and_expected_to_fit_its_cap(name: str) -> None:
    recipe = load_recipe(f"{name}-small")
    plan = make_plan(recipe.model)
    assert plan.parameter_count == COUNTS[name]
    assert artifact_sizes(recipe, plan)[1] <= recipe.artifact.max_bytes <= 1_000_000


@pytest.mark.parametrize("name", FULL)
def test_a_small_sibling_learns_a_repeated_sentence(name: str) -> None:
    model = LanguageModel(load_recipe(f"{name}-small").model, seed=0)
    ids = torch.randint(2, 4096, (1, 9), generator=torch.Generator().manual_seed(0)).repeat(2, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, nll = training_loss(model, ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(nll.detach()))
    assert losses[0] == pytest.approx(8.32, abs=0.2) and losses[-1] < 0.8 * losses[0]
