"""A computation written down once and run again without Python's and autograd's share: what CUDA
graphs are, for the CPU.

`capture` notes the operations and kernels of a call, kernels without running them; the `Program`
repeats them on what the tensors that existed before hold by then, with all others in one arena. No
decision in between may depend on what a tensor holds; that is noticed where it asks the tensor
(`item`, `nonzero`), not where it reads the memory (`numpy`, `tolist`).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from niblick.model.kernels.arena import Block, place
from niblick.model.kernels.library import Kernels
from niblick.runtime import return_freed_memory

_ALLOCATE = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
_PLACEMENT = (
    "dtype",
    "layout",
    "device",
    "pin_memory",
)  # given by the tensor that is written to, unless its operation asks
_DEPENDS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class NotRepeatableError(Exception):
    """The computation looks at what a tensor holds, or changes the size of its memory."""


@dataclass(frozen=True)
class _Call:
    """A kernel (no operator), an operation in place (no results), or one whose results are new
    tensors.
    """

    function: Any
    operator: bool
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Inside:
    """A tensor made inside: the address of its storage, and the elements in it that it shows."""

    storage: int
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


class Program:
    """The operations of a captured computation and an arena of `size` bytes; calling it writes its
    results anew.
    """

    def __init__(
        self,
        kernels: Kernels,
        calls: Sequence[_Call],
        results: Sequence[Any],
        blocks: Mapping[int, Block],
    ) -> None:
        self._kernels = kernels
        offsets, self.size = place(list(blocks.values()))
        self._offsets = dict(zip(blocks, offsets, strict=True))
        self._memory = mmap.mmap(-1, max(1, self.size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._arena = torch.frombuffer(self._memory, dtype=torch.uint8).untyped_storage()
        self._calls = [
            self._placed(call) for call in calls
        ]  # kept because kernels know their tensors by address only
        self._steps = [_step(call) for call in self._calls]
        self.results: list[Tensor | None] = tree_map_only(_Inside, self._tensor, list(results))

    @torch.no_grad()
    def __call__(self) -> list[Tensor | None]:
        """Run it; the results lie in memory that the next call writes to."""
        self._kernels.follow_torch()
        for step in self._steps:
            step()
        return self.results

    def rest(self) -> None:
        """Give the arena's memory back to the system until the next call; results are lost."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def _placed(self, call: _Call) -> _Call:
        parts = tree_map_only(_Inside, self._tensor, (call.arguments, call.named, call.results))
        return _Call(call.function, call.operator, *parts)

    def _tensor(self, inside: _Inside) -> Tensor:
        t, at = torch.empty(0, dtype=inside.dtype), self._offsets[inside.storage]
        return t.set_(self._arena, at // t.itemsize + inside.offset, inside.shape, inside.stride)


def capture(kernels: Kernels, compute: Callable[[], Sequence[Tensor | None]]) -> Program:
    """What `compute` does, without the work of its kernels; `NotRepeatableError` where it depends
    on what tensors hold.
    """
    with _Capture(kernels) as notes:
        results = notes.used(list(compute()))
    return_freed_memory()  # the program has an arena of its own
    return Program(kernels, notes.calls, results, notes.blocks)


class _Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation and when storages are used; a moment is an operation's number."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.blocks: dict[int, Block] = {}  # by the address of the storage, of those made inside
        self._kernels, self._moment = kernels, 0
        self._weak: list[
            StorageWeakRef
        ] = []  # a storage's address is not given to another while these last

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's question whether to import its compiler, which takes seconds, only to switch it
        off in here.
        """
        return False

    def __enter__(self) -> Self:
        self._kernels.capture = self.kernel
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._kernels.capture = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def kernel(self, function: Any, arguments: tuple[Any, ...]) -> None:
        """Note a kernel's call, which may read and write all its tensors."""
        self.calls.append(_Call(function, False, self.used(arguments), {}))
        self._moment += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it, unless it only makes room or another view."""
        if any(tag in func.tags for tag in _DEPENDS):
            raise NotRepeatableError(str(func))
        kwargs = kwargs or {}
        arguments, named = self.used(args), self.used(kwargs)
        found = func(*args, **kwargs)
        results = tuple(_tensors(found))
        given = {_address(t) for t in _tensors((args, kwargs))}
        fresh = [t for t in results if _address(t) not in given]
        for t in fresh:
            self._weak.append(StorageWeakRef(t.untyped_storage()))  # type: ignore[no-untyped-call]
            self.blocks[_address(t)] = Block(
                t.untyped_storage().nbytes(), self._moment, self._moment
            )
        if func._schema.is_mutable:
            self.used(args)  # an argument may have grown
            self.calls.append(_Call(func, True, arguments, named))
        elif fresh and func._schema.name.removeprefix("aten::") not in _ALLOCATE:
            self.calls.append(_Call(func, True, arguments, named, self.used(results)))
        self._moment += 1
        return found

    def used(self, what: Any) -> Any:
        """The nest with tensors made inside described; they are used now."""
        return tree_map_only(Tensor, self._used, what)

    def _used(self, t: Tensor) -> Tensor | _Inside:
        block = self.blocks.get(_address(t))
        if block is None:
            return t
        if t.untyped_storage().nbytes() != block.size:
            raise NotRepeatableError("memory that changes its size")
        block.last = self._moment
        return _Inside(_address(t), t.dtype, int(t.storage_offset()), t.shape, t.stride())


def _step(call: _Call) -> Callable[[], Any]:
    """What to do for a call."""
    if not call.operator:
        return partial(
            call.function, *(t.data_ptr() if isinstance(t, Tensor) else t for t in call.arguments)
        )
    if not call.results:
        return partial(call.function, *call.arguments, **call.named)
    return _into(call.function, call.arguments, call.named, call.results)


def _into(
    operator: Any, arguments: tuple[Any, ...], named: dict[str, Any], results: tuple[Tensor, ...]
) -> Callable[[], Any]:
    """An operation that writes its results to given tensors: its own form with `out` where there is
    one, else by copying.
    """
    packet, wanted = operator.overloadpacket, _signature(operator)
    for overload in (getattr(packet, name) for name in packet.overloads()):
        outputs = [
            a.name for a in overload._schema.arguments if a.is_out and str(a.type) == "Tensor"
        ]
        if len(outputs) == len(results) and _signature(overload) == wanted:
            known = {a.name for a in overload._schema.arguments}
            kept = {key: each for key, each in named.items() if key in known}
            return partial(overload, *arguments, **kept, **dict(zip(outputs, results, strict=True)))

    def copy() -> None:
        for result, found in zip(results, _tensors(operator(*arguments, **named)), strict=True):
            result.copy_(found)

    return copy


def _signature(operator: Any) -> list[tuple[str, str]]:
    return [
        (a.name, str(a.type))
        for a in operator._schema.arguments
        if not a.is_out and a.name not in _PLACEMENT
    ]


def _address(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def _tensors(what: Any) -> list[Tensor]:
    return [each for each in tree_leaves(what) if isinstance(each, Tensor)]
