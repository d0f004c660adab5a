"""Gradients leave during the backward, in one order, and arrive as those of a plain backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from niblick.model import LanguageModel
from niblick.model.graphs import one_graph
from niblick.model.lm import NO_FACTORS
from niblick.objective import training_loss
from niblick.optim import Layout, Optimizers
from niblick.recipe import load_recipe
from niblick.training.overlap import Sink, tapped

SMALL = [
    "model.dim=32",
    "model.context=32",
    "model.vocab_size=260",
    'model.stack=[{layers=["token-shift", "full"]}]',
    "model.attention.heads=2",
    "model.attention.kv_heads=1",
    "model.value_embedding={enabled=false, layers=[]}",
    "model.bigram.buckets=64",
]


class Alone:
    """The one process there is; it notes when what is sent."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.sent = 0

    def sum(self, tensor: torch.Tensor) -> Callable[[], None]:
        self.sent += tensor.numel()
        return lambda: None

    def sum_at(self, owner: int, tensor: torch.Tensor) -> Callable[[], None]:
        return self.sum(tensor)

    def sum_exactly(self, tensor: torch.Tensor) -> None:
        pass


def _setting() -> tuple[LanguageModel, Optimizers, Alone, Sink]:
    recipe, alone = load_recipe("pocket", SMALL), Alone()
    model = LanguageModel(recipe.model, seed=1)
    layout = Layout(model.plan.parameters, recipe.training)
    weights = torch.zeros(layout.total)
    optimizers = Optimizers(
        layout, weights, recipe.training, dtype=torch.float32, processes=alone
    )  # fmt: skip
    sink = Sink(layout, optimizers.gradients, optimizers.buckets(), alone)
    return model, optimizers, alone, sink


def test_buckets_hold_every_gradient_once() -> None:
    _, optimizers, _, _ = _setting()
    slots = [slot for bucket in optimizers.buckets() for slot in bucket.slots]
    assert sorted(slots) == list(range(len(optimizers.layout.slots)))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_through_taps_are_the_plain_ones_and_leave_early(compiled: bool) -> None:
    model, optimizers, alone, sink = _setting()
    layout, named = optimizers.layout, dict(model.named_parameters())
    batches = [torch.randint(260, (2, 33), generator=torch.Generator().manual_seed(n))
               for n in range(2)]  # fmt: skip
    pairs = [(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in batches]
    plain = torch.zeros(layout.total)
    for x, y in pairs:
        training_loss(model, x, y)[0].backward()
        for slot in layout.slots:
            if (grad := named[slot.name].grad) is not None:
                slot.view(plain).add_(grad)
        model.zero_grad(set_to_none=True)
    loss = tapped(training_loss, model, sink, layout)
    if compiled:
        loss = one_graph(loss, "aot_eager")
    loss(*pairs[0], NO_FACTORS)[0].backward()
    assert not optimizers.gradients.any(), "between micro-batches nothing is taken"
    for step in range(2):
        optimizers.gradients.fill_(7.0)  # of the step before
        for n, (x, y) in enumerate(pairs):
            sink.open(add=n > 0, last=n == 1)
            loss(x, y, NO_FACTORS)[0].backward()
            model.zero_grad(set_to_none=True)
            assert (alone.sent > layout.total * step) == (n == 1 and step > 0)
            sink.close()
        assert alone.sent == layout.total * (step + 1)
        torch.testing.assert_close(optimizers.gradients, plain, rtol=1e-5, atol=1e-7)
    assert sink.early > len(optimizers.buckets()) // 2
