"""Gradients leave during the backward, in one order, and arrive as those of a plain backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_compiler, make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from niblick.components import Call
from niblick.model import LanguageModel
from niblick.model.equations import Equations
from niblick.model.graphs import one_graph
from niblick.model.lm import NO_FACTORS
from niblick.objective import training_loss
from niblick.optim import Group, Layout, Optimizers
from niblick.recipe import load_recipe
from niblick.training.overlap import Sink, call_taps_early, early, hooked, tapped

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


class Watching(Equations):
    """The plain equations; notes how much was sent when the gradient reached the embeddings."""

    def __init__(self, alone: Alone) -> None:
        self.alone, self.seen = alone, 0

    def embed(self, call: Call) -> torch.Tensor:
        x = super().embed(call)
        if x.requires_grad:
            x.register_hook(self._note)
        return x

    def _note(self, grad: torch.Tensor) -> None:
        self.seen = self.alone.sent


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = [torch.randint(260, (2, 33), generator=torch.Generator().manual_seed(n))
            for n in range(2)]  # fmt: skip
    return [(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in made]


def _plain(model: LanguageModel, layout: Layout) -> torch.Tensor:
    named, plain = dict(model.named_parameters()), torch.zeros(layout.total)
    for x, y in _batches():
        training_loss(model, x, y)[0].backward()
        for slot in layout.slots:
            if (grad := named[slot.name].grad) is not None:
                slot.view(plain).add_(grad)
        model.zero_grad(set_to_none=True)
    return plain


def _step(model: LanguageModel, optimizers: Optimizers, sink: Sink, loss: Any) -> None:
    optimizers.gradients.fill_(7.0)  # of the step before
    for n, (x, y) in enumerate(_batches()):
        sink.open(add=n > 0, last=n == 1)
        loss(x, y, NO_FACTORS)[0].backward()
        model.zero_grad(set_to_none=True)
        sink.close()


def test_hooks_send_gradients_while_the_backward_computes_others() -> None:
    model, optimizers, alone, sink = _setting()
    layout = optimizers.layout
    plain = _plain(model, layout)
    hooked(model, sink, layout)
    model.kernels = watching = Watching(alone)
    training_loss(model, *_batches()[0])[0].backward()
    assert not optimizers.gradients.any(), "between micro-batches nothing is taken"
    model.zero_grad(set_to_none=True)
    for step in range(2):
        _step(model, optimizers, sink, lambda x, y, factors: training_loss(model, x, y, factors))
        assert alone.sent == layout.total * (step + 1)
        torch.testing.assert_close(optimizers.gradients, plain, rtol=1e-5, atol=1e-7)
    matrices = layout.segment(Group.MATRIX).stop
    assert watching.seen - layout.total > matrices / 2, "the layers' own"


def test_a_compiled_backward_calls_taps_where_it_stands() -> None:
    model, optimizers, alone, sink = _setting()
    layout, places = optimizers.layout, []
    plain = _plain(model, layout)
    hooked(model, sink, layout)  # which then change nothing

    def backward(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        call_taps_early(graph.graph)
        graph.graph.lint()
        graph.recompile()
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        for n, node in enumerate(nodes):
            if "niblick_training.take" in str(node.target):
                places.append(n / len(nodes))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=make_boxed_compiler(lambda g, _: g), bw_compiler=backward)
    loss = one_graph(tapped(training_loss, model, sink, layout), backend)
    for step in range(2):
        _step(model, optimizers, sink, loss)
        assert alone.sent == layout.total * (step + 1)
        torch.testing.assert_close(optimizers.gradients, plain, rtol=1e-5, atol=1e-7)
    assert len(places) == len(layout.slots)
    assert places[0] < 0.2 and places[len(places) // 2] < 0.8, places
    assert sink.early > len(optimizers.buckets()) // 2


def test_inductor_takes_the_option_that_moves_taps() -> None:
    one_graph(training_loss, **early())  # it refuses what it does not know
