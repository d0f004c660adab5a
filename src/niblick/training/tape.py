"""A computation and its gradients, noted once and repeated without modules and autograd.

A `Tape` notes the torch functions that a call makes, on real tensors. A `Program` repeats them on
other inputs of the same kind and then goes back through them: through a kernels' operator by its
own gradient, through any other function by autograd, for that function alone. What a repetition
cannot see is a decision of Python's: functions that tell it what a tensor holds are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from niblick.model.kernels.operators import OPERATORS, Operator

_ASKS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}
_ASKS |= {f"__{kind}__" for kind in ("bool", "int", "float", "index", "contains", "array")}
_RESHAPES = {"view", "flatten", "reshape", "squeeze", "unsqueeze"}


class NotRepeatableError(Exception):
    """The computation looks at what a tensor holds, or writes to one that is in use."""


@dataclass(frozen=True)
class Slot:
    """The place of a tensor that is computed anew each time."""

    index: int


@dataclass
class Call:
    """A function, its arguments with slots for tensors, and the slots of its results.

    `needs` are the slots and parameters among the arguments that a gradient goes to, with their
    shapes. Nothing reads the slots in `frees` after the call, nor those in `frees_back` after the
    way back through it.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: list[Slot | None]
    needs: dict[Any, torch.Size]
    frees: list[int] = field(default_factory=list)
    frees_back: list[int] = field(default_factory=list)

    def forward(self, values: list[Any]) -> None:
        """Put the results into their slots."""
        self.store(self.function(*_filled(self.arguments, values), **self.given(values)), values)

    def given(self, values: list[Any]) -> dict[str, Any]:
        """The named arguments."""
        return {name: _filled(each, values) for name, each in self.named.items()}

    def store(self, found: Any, values: list[Any]) -> None:
        """Put results into their slots, and what is not needed any more out of its own."""
        found = found if isinstance(found, tuple | list) else (found,)
        for slot, value in zip(self.results, found, strict=True):
            if slot is not None:
                values[slot.index] = value
        for index in self.frees:
            values[index] = None

    def back(self, values: list[Any], grads: list[Tensor | None]) -> Iterator[tuple[Any, Any]]:
        """(slot or parameter, gradient or None) for gradients of the results."""
        raise NotImplementedError

    def reads_back(self) -> set[int]:
        """The slots that `back` reads."""
        return set()


class OperatorCall(Call):
    """A kernels' operator, past torch's dispatcher."""

    @cached_property
    def _operator(self) -> Operator:
        return OPERATORS[self.function.__name__]

    @cached_property
    def _varying(self) -> list[tuple[int, int]]:
        """Where an argument is a slot, and which; an operator's arguments are no nests."""
        return [(at, p.index) for at, p in enumerate(self.arguments) if isinstance(p, Slot)]

    @cached_property
    def _back(self) -> tuple[Operator, list[Any], list[tuple[Any, int]]]:
        """The gradient, its arguments (a number: of that result) and what its results are of."""
        operator, gradient = self._operator, self._operator.gradient
        places = dict(zip(operator.arguments, self.arguments, strict=True))
        of = [(p, f"g{name}") for name, p in places.items() if p is not None and p in self.needs]
        places |= zip(operator.results, self.results, strict=True)
        inputs = [
            operator.results.index(name[1:]) if name not in operator.kept else (places[name],)
            for name in gradient.arguments
        ]
        return gradient, inputs, [(p, gradient.results.index(name)) for p, name in of]

    def forward(self, values: list[Any]) -> None:
        given = list(self.arguments)
        for at, index in self._varying:
            given[at] = values[index]
        self.store(self._operator(*given), values)

    def back(self, values: list[Any], grads: list[Tensor | None]) -> Iterator[tuple[Any, Any]]:
        gradient, inputs, places = self._back
        given = []
        for each in inputs:
            if type(each) is int:
                grad = grads[each]
                given.append(None if grad is None else grad.contiguous())
            else:
                place = each[0]
                given.append(values[place.index] if type(place) is Slot else place)
        found = gradient(*given)
        return ((place, found[index]) for place, index in places)

    def reads_back(self) -> set[int]:
        return {slot.index for slot in _slots(self._back[1])}


class ReshapeCall(Call):
    """A function that only shows a tensor in another shape."""

    def back(self, values: list[Any], grads: list[Tensor | None]) -> Iterator[tuple[Any, Any]]:
        for place, shape in self.needs.items():
            yield place, None if grads[0] is None else grads[0].reshape(shape)


class FunctionCall(Call):
    """Any other function: autograd keeps what its gradient needs."""

    def forward(self, values: list[Any]) -> None:
        leaves = [_filled(place, values).detach().requires_grad_() for place in self.needs]
        swapped = dict(zip(self.needs, leaves, strict=True))
        with torch.enable_grad():
            found = self.function(*_filled(self.arguments, values, swapped), **self.given(values))
        found = found if isinstance(found, tuple | list) else (found,)
        self._graph = leaves, found
        self.store([t.detach() if isinstance(t, Tensor) else t for t in found], values)

    def back(self, values: list[Any], grads: list[Tensor | None]) -> Iterator[tuple[Any, Any]]:
        (leaves, found), self._graph = self._graph, ([], ())
        pairs = [(t, g) for t, g in zip(found, grads, strict=True) if g is not None]
        pulled = torch.autograd.grad(
            [t for t, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True
        )
        return zip(self.needs, pulled, strict=True)


class Tape(TorchFunctionMode):
    """Notes calls while it is entered; `inputs` are the tensors that a repetition replaces."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.slots = {id(t): Slot(i) for i, t in enumerate(inputs)}
        self._kept: list[Any] = list(inputs)  # so that no identity is given twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function and note it, unless its results are the same each time."""
        named, name = kwargs or {}, getattr(func, "__name__", "")
        given = {id(t): t for t in _tensors((args, *named.values()))}
        if not any(key in self.slots or t.requires_grad for key, t in given.items()):
            return func(*args, **named)
        writes = name.endswith("_") and not name.endswith("__")
        if name in _ASKS or writes or name == "__setitem__" or named.get("out") is not None:
            raise NotRepeatableError(f"{name} cannot be repeated")
        found = func(*args, **named)
        results = found if isinstance(found, tuple | list) else (found,)
        fresh = [t for t in results if isinstance(t, Tensor) and id(t) not in given]
        if fresh:
            places, named_places = (
                self._places(args),
                {k: self._places(v) for k, v in named.items()},
            )
            self._kept += fresh
            for t in fresh:
                self.slots[id(t)] = Slot(len(self.slots))
            needs = {self._places(t): t.shape for t in given.values() if t.requires_grad}
            grads = any(t.requires_grad for t in fresh)
            slots = [self.slots[id(t)] if any(t is f for f in fresh) else None for t in results]
            kind = _kind(func, name, grads)
            self.calls.append(kind(func, places, named_places, slots, needs if grads else {}))
        return found

    def _places(self, what: Any) -> Any:
        """The nest with slots for the tensors that vary."""
        if isinstance(what, Tensor):
            return self.slots.get(id(what), what)
        return type(what)(map(self._places, what)) if type(what) in (tuple, list) else what


def _kind(function: Any, name: str, grads: bool) -> type[Call]:
    if str(function).removesuffix(".default") == f"niblick.{name}":
        return OperatorCall
    if not grads:
        return Call
    return ReshapeCall if name in _RESHAPES else FunctionCall


class Program:
    """The calls of a tape that `loss` and `results` depend on, and the way back from the loss."""

    def __init__(
        self, tape: Tape, loss: Tensor, results: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> None:
        self._size, self._parameters = len(tape.slots), list(parameters)
        self._loss, self._results = tape.slots[id(loss)], [tape.slots[id(t)] for t in results]
        self._calls = _needed(tape.calls, {self._loss, *self._results})
        self._back = _reached(self._calls, self._loss)
        seen = {self._loss.index, *(slot.index for slot in self._results)}
        for call in reversed(self._back):  # what comes later on the whole way has been seen
            call.frees_back = sorted(call.reads_back() - seen)
            seen.update(call.frees_back)
        for call in reversed(self._calls):
            uses = {s.index for s in _slots((call.arguments, *call.named.values(), call.results))}
            call.frees = sorted(uses - seen)
            seen.update(uses)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """(results, gradients); None for a parameter that the loss does not depend on."""
        values: list[Any] = [*inputs, *[None] * (self._size - len(inputs))]
        for call in self._calls:
            call.forward(values)
        grads: dict[Any, Tensor] = {self._loss: torch.ones_like(values[self._loss.index])}
        for call in self._back:
            incoming = [None if slot is None else grads.pop(slot, None) for slot in call.results]
            for place, grad in call.back(values, incoming):
                if grad is not None:
                    before = grads.get(place)
                    grads[place] = grad if before is None else before + grad
            for index in call.frees_back:
                values[index] = None
        results = [values[slot.index] for slot in self._results]
        return results, [grads.get(parameter) for parameter in self._parameters]


def _needed(calls: Sequence[Call], wanted: set[Slot]) -> list[Call]:
    """The calls, in order, whose results are wanted, by other such calls or in the end."""
    found: list[Call] = []
    for call in reversed(calls):
        if wanted.intersection(slot for slot in call.results if slot is not None):
            wanted.update(_slots((call.arguments, *call.named.values())))
            found.append(call)
    return found[::-1]


def _reached(calls: Sequence[Call], loss: Slot) -> list[Call]:
    """The calls that a gradient of the loss goes through, in the order of the way back."""
    reached, found = {loss}, []
    for call in reversed(calls):
        if call.needs and reached.intersection(s for s in call.results if s is not None):
            reached.update(place for place in call.needs if isinstance(place, Slot))
            found.append(call)
    return found


def _filled(what: Any, values: list[Any], swapped: dict[Any, Tensor] | None = None) -> Any:
    """A nest with values for slots, those of `swapped` first."""
    kind = type(what)
    if swapped and (kind is Slot or isinstance(what, Tensor)) and what in swapped:
        return swapped[what]
    if kind is Slot:
        return values[what.index]
    if kind is tuple or kind is list:
        return kind([_filled(each, values, swapped) for each in what])
    return what


def _slots(nest: Any) -> Iterator[Slot]:
    if isinstance(nest, Slot):
        yield nest
    elif isinstance(nest, tuple | list):
        for each in nest:
            yield from _slots(each)


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, tuple | list):
        for each in nest:
            yield from _tensors(each)
