"""A mixer is one object in one file: the example of docs/models.md, run as it stands there."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from niblick.components import MIXERS
from niblick.model.kernels import load_kernels, use_kernels
from niblick.plan import make_plan
from niblick.recipe.model import ModelRecipe
from property.plans import BOS, VOCAB, scattered, tokens

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
RECIPE = ModelRecipe.model_validate(
    {
        "vocab_size": VOCAB,
        "dim": 12,
        "context": 8,
        "stack": [{"layers": ["running-mean*2", "full"], "loops": 2}],
        "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 2}},
    }
)


@pytest.fixture(autouse=True)
def example(tmp_path: Path) -> Iterator[None]:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    script = tmp_path / "running_mean.py"
    script.write_text(next(text for text in blocks if "MIXERS.register" in text), "utf-8")
    runpy.run_path(str(script))
    yield
    del MIXERS._entries["running-mean"]


def test_the_plan_counts_the_new_mixer() -> None:
    plan = make_plan(RECIPE)
    names = {p.name: p.size for p in plan.parameters if ".mixer." in p.name}
    assert sum(names.values()) == 2 * (12 + 2 * 12 * 12)
    assert plan.decode_state_bytes() == 4 * (4 * 12 + 2 * 2 * 6 * 8)


def test_the_new_mixer_gives_the_same_numbers_in_pieces_and_its_declared_state() -> None:
    model, ids = scattered(RECIPE, 1), tokens(8, seed=2)
    with torch.no_grad():
        whole, _ = model(ids)
        state, found = model.empty_state(2), []
        for t in range(8):
            logits, state = model(ids[:, t : t + 1], state)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert state.nbytes == 2 * model.plan.decode_state_bytes()


def test_the_new_mixer_forgets_at_a_document_boundary() -> None:
    stack = [segment.model_copy(update={"layers": ("running-mean*2",)}) for segment in RECIPE.stack]
    model = scattered(RECIPE.model_copy(update={"stack": tuple(stack)}), 1)
    ids = tokens(10, seed=3)
    ids[:, 5] = BOS
    other = torch.cat([tokens(5, seed=4), ids[:, 5:]], dim=1)
    with torch.no_grad():
        assert torch.equal(model.logits(ids)[:, 5:], model.logits(other)[:, 5:])


def test_a_mixer_that_does_not_say_how_far_it_looks_has_no_bound() -> None:
    assert make_plan(RECIPE).receptive_field(8) is None


def test_the_kernels_leave_the_new_mixer_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("no C compiler")
    model, ids = scattered(RECIPE, 1), tokens(8, seed=2)
    plain = model.logits(ids)
    assert use_kernels(model, kernels)
    torch.testing.assert_close(model.logits(ids), plain, rtol=1e-4, atol=1e-4)
