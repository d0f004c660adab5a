"""Gradients that are sent while the backward still computes others.

A `Sink` gets each gradient the moment it is whole: into the flat buffer, and once all of a bucket
are there, on to the other processes. In plain torch a hook of the parameter hands it over. A
compiled backward gives all gradients at its end; there every parameter is read through a tap, an
operator of the graph, which `call_taps_early` puts right behind what it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn

from niblick.model import LanguageModel
from niblick.optim import Bucket, Layout, Processes, Waiting

Loss = Callable[..., tuple[Tensor, Tensor]]
_numbers = count()
_sinks: WeakValueDictionary[int, Sink] = WeakValueDictionary()


class Sink:
    """Takes gradients into the flat buffer `flat` and sends each of `buckets` as it is complete.

    All processes must send in one order. It is that in which the first of them completed its
    buckets in its first step, at the end of which they are all sent.
    """

    def __init__(
        self, layout: Layout, flat: Tensor, buckets: Sequence[Bucket], processes: Processes
    ) -> None:
        self._views = [slot.view(flat) for slot in layout.slots]
        self._buckets, self._processes, self._device = buckets, processes, flat.device
        self._of = {slot: n for n, bucket in enumerate(buckets) for slot in bucket.slots}
        self._order: list[int] | None = None
        self._open = self._add = self._last = False
        self._arrived: set[int] = set()
        self._missing: list[int] = []
        self._complete: list[int] = []
        self._waiting: list[Waiting] = []
        self.early = 0  # buckets of the last step that left before the backward was over
        self.key = next(_numbers)
        _sinks[self.key] = self

    def open(self, *, add: bool, last: bool) -> None:
        """Before a micro-batch: whether its gradients are added to those that are there, and
        whether it is the last, whose gradients are sent.
        """
        self._open, self._add, self._last = True, add, last
        self._arrived = set()
        self._missing = [len(bucket.slots) for bucket in self._buckets]
        self._complete, self._waiting = [], []

    @torch.no_grad()
    def take(self, slot: int, gradient: Tensor) -> None:
        """The gradient of parameter `slot` is whole. What comes again, as from the hook of a
        parameter that has a tap, is dropped, and what comes between micro-batches.
        """
        if not self._open or slot in self._arrived:
            return
        view = self._views[slot]
        view.add_(gradient) if self._add else view.copy_(gradient)
        self._arrived.add(slot)
        bucket = self._of[slot]
        self._missing[bucket] -= 1
        if self._last and not self._missing[bucket]:
            self._complete.append(bucket)
            self._send()

    @torch.no_grad()
    def close(self) -> None:
        """After a micro-batch's backward; after the last one's, the buffer holds the mean over all
        processes, of divided matrices only where they are needed.
        """
        self._open = False
        for slot, view in enumerate(self._views):
            if slot not in self._arrived and not self._add:
                view.zero_()
        if not self._last:
            return
        self.early = len(self._waiting)
        seen = set(self._complete)
        self._complete += [n for n in range(len(self._buckets)) if n not in seen]
        if self._order is None:
            self._order = self._agreed(self._complete)
        self._send()
        for wait in self._waiting:
            wait()

    def _send(self) -> None:
        """Whatever is complete and whose turn it is."""
        order = self._order or []
        while len(self._waiting) < len(order) and order[len(self._waiting)] in self._complete:
            self._waiting.append(self._buckets[order[len(self._waiting)]].send())

    def _agreed(self, order: list[int]) -> list[int]:
        """The first process's order, in all."""
        mine = order if self._processes.rank == 0 else [0] * len(order)
        shared = torch.tensor(mine, dtype=torch.int64, device=self._device)
        self._processes.sum_exactly(shared)
        return shared.tolist()


def hooked(model: LanguageModel, sink: Sink, layout: Layout) -> None:
    """Have the parameters of `model` hand their gradients to `sink`, in plain torch."""
    named = dict(model.named_parameters())
    for number, slot in enumerate(layout.slots):

        def hook(parameter: Tensor, number: int = number) -> None:
            assert parameter.grad is not None
            sink.take(number, parameter.grad)

        parameter = named[slot.name]
        parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def tapped(loss: Loss, model: LanguageModel, sink: Sink, layout: Layout) -> Loss:
    """`loss` of a model whose gradients go to `sink`; parameters keep meaningless ones."""
    whole, named = _Whole(loss, model), dict(model.named_parameters())
    parameters = [(f"model.{slot.name}", named[slot.name]) for slot in layout.slots]
    key = sink.key

    def call(
        inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        weights = {
            name: _Tap.apply(parameter, slot, key)  # type: ignore[no-untyped-call]
            for slot, (name, parameter) in enumerate(parameters)
        }
        given = inputs, targets, dict(factors)
        return torch.func.functional_call(whole, weights, given)  # type: ignore[no-any-return]

    return call


class _Whole(nn.Module):
    """A model and its loss as one module, whose parameters a call can replace."""

    def __init__(self, loss: Loss, model: LanguageModel) -> None:
        super().__init__()
        self.loss, self.model = loss, model

    def forward(
        self, inputs: Tensor, targets: Tensor, factors: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.loss(self.model, inputs, targets, factors)


class _Tap(torch.autograd.Function):
    """A parameter as it is; its gradient goes to a sink."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, slot: int, key: int) -> Tensor:
        ctx.place = slot, key
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.niblick_training.take(gradient, *ctx.place), None, None


# An operator, so that a compiled backward calls it where it stands. What it gives has the shape of
# a gradient, which autograd asks for, and no values.
@torch.library.custom_op(
    "niblick_training::take",
    mutates_args=(),
    schema="(Tensor gradient, int slot, int key) -> Tensor",
)
def _take(gradient: Tensor, slot: int, key: int) -> Tensor:
    sink = _sinks.get(key)
    if sink is not None:
        sink.take(slot, gradient)
    return torch.empty_like(gradient)


@_take.register_fake
def _(gradient: Tensor, slot: int, key: int) -> Tensor:
    return torch.empty_like(gradient)


def call_taps_early(graph: fx.Graph) -> None:
    """Have a backward call each tap where its gradient is whole; autograd, which goes backward by
    the order of the forward, comes to them last.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.niblick_training.take.default:
            node.args[0].append(node)


def early() -> dict[str, Any]:
    """Options with which inductor does so."""
    from torch._inductor.custom_graph_pass import CustomGraphPass  # takes seconds to import

    class CallTapsEarly(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            call_taps_early(graph)

        def uuid(self) -> str:
            return "niblick: taps early, 1"

    return {"options": {"post_grad_custom_pre_pass": CallTapsEarly()}}
