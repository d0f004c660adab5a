"""A pretended CUDA device: what is on it is computed by the CPU, what mixes devices fails as on a
card, and what would have Python wait for the device is counted.

A `Card` is a tensor of that device, a wrapper around one of the CPU. To torch's C++ it is on
"meta", which needs no device; to Python it is on "cuda:0". Within `pretended()` torch finds one
such device, and `torch.compile` gives back what it is given: what a compiler makes of the same
code for a described device is `gpu_code`'s.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
import torch._dynamo  # looks for devices as it is imported
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from niblick.model import flex, head

CUDA, META, CPU = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
# Operators whose outcome Python cannot have before the device has come to it.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
BETWEEN = {"_to_copy", "copy_"}  # devices
GIGABYTE = 1 << 30


class Card(Tensor):
    """A tensor of the pretended device."""

    kept: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, kept: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls, kept.shape, strides=kept.stride(), storage_offset=kept.storage_offset(),
            dtype=kept.dtype, device=META, requires_grad=kept.requires_grad,
        )  # fmt: skip
        made.kept = kept.detach()
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def _given(self, value: Tensor) -> None:
        assert isinstance(value, Card), "the data of another device"
        Tensor.data.__set__(self, value)
        self.kept = value.kept

    data = property(Tensor.data.__get__, _given)

    def numpy(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.kept.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made: Tensor = Card(self.kept.clone())
            if isinstance(self, nn.Parameter):
                made = nn.Parameter(made, self.requires_grad)
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __repr__(self) -> str:
        return f"Card({self.kept!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["kept"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *about: Any) -> Card:
        return Card(inner["kept"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


waits: Counter[tuple[str, str]] = Counter()  # operators that waited, and the lines that called them


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator gives, on the device that its arguments say."""
    name = func._schema.name.partition("::")[2]
    if name == "is_pinned":
        return True
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    cards = [tensor for tensor in tensors if isinstance(tensor, Card)]
    there, given = bool(cards), dict(kwargs)
    if given.get("device") is not None:
        there, given["device"] = torch.device(given["device"]).type == "meta", CPU
    if name == "copy_":
        there = isinstance(args[0], Card)
    if cards:
        if name in WAITING or (name in BETWEEN and not there) or by_a_mask(name, args):
            waits[name, caller()] += 1
        if name not in BETWEEN:
            refuse_others(func, name, args, tensors)
    out = func(*tree_map(bare, args), **tree_map(bare, given))
    if not there:
        return out
    out = tree_map(lambda t: Card(t) if isinstance(t, Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if cards else out


def bare(value: Any) -> Any:
    return value.kept if isinstance(value, Card) else value


def by_a_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Indexing whose outcome has a shape that the device decides."""
    return name == "index" and any(isinstance(t, Tensor) and t.dtype == torch.bool for t in args[1])


def refuse_others(func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise as CUDA does for tensors of the CPU beside those of the card, numbers excepted and what
    indexes a tensor of the card.
    """
    allowed: list[Any] = []
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        allowed = tree_leaves(args[1]) if isinstance(args[0], Card) else []
    for tensor in tensors:
        if tensor.dim() and not isinstance(tensor, Card) and all(tensor is not t for t in allowed):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})"
            )


def caller() -> str:
    """The innermost line of the package that is at work."""
    frames = [f for f in traceback.extract_stack() if "/niblick/" in f.filename]
    if not frames:
        return ""
    return f"{frames[-1].filename.rpartition('/niblick/')[2]}:{frames[-1].name}"


class Computing(TorchDispatchMode):
    """Operators that make tensors, which have no argument to tell the device by."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Naming(TorchFunctionMode):
    """Calls of torch that name the device, or ask what only a CPU's tensor can do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        given = {key: renamed(value) for key, value in (kwargs or {}).items()}
        if given.pop("pin_memory", False):
            given["pin_memory"] = False
        args = tuple(map(renamed, args))
        if name == "pin_memory":
            return args[0].clone()
        if name == "tolist" and isinstance(args[0], Card):
            return args[0].cpu().tolist()
        if func in (torch.tensor, torch.as_tensor) and given.get("device") == META:
            del given["device"]
            return func(*args, **given).to(META)
        return func(*args, **given)


def renamed(value: Any) -> Any:
    """The pretended device as torch's C++ is told of it."""
    if isinstance(value, torch.device):
        return META if value.type == "cuda" else value
    return META if isinstance(value, str) and re.fullmatch(r"cuda(:\d+)?", value) else value


class Stream:
    """A stream or an event; there is nothing to wait for."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


class Generator(torch.Generator):
    """Draws on the CPU, whatever the device."""

    def __new__(cls, device: Any = None) -> Self:
        return super().__new__(cls)


def attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, enable_gqa: bool = False) -> Tensor:
    """What flex_attention computes, of all scores: the mask's rule is called on the device."""
    at = [torch.arange(size, device=q.device) for size in (*q.shape[:2], q.shape[2], k.shape[2])]
    at = [place.view(-1, *[1] * (3 - n)) for n, place in enumerate(at)]
    seen = block_mask.mask_mod(*at)
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1).float() for t in (k, v))
    scores = q.float() @ k.mT / q.shape[-1] ** 0.5
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).to(q.dtype)


def _enter(mode: Any) -> None:
    mode.before = torch.is_grad_enabled()
    torch.set_grad_enabled(mode.before and not mode.mode)


def _exit(mode: Any, *error: Any) -> None:
    torch.set_grad_enabled(mode.before)


def always(value: Any) -> Callable[..., Any]:
    return lambda *arguments, **options: value


@contextmanager
def pretended() -> Iterator[Counter[tuple[str, str]]]:
    """One CUDA device for the block; gives what waited for it."""
    card = SimpleNamespace(
        name="pretended", major=9, minor=0, total_memory=80 * GIGABYTE, multi_processor_count=132
    )
    answers = {
        "is_available": True, "device_count": 1, "get_device_name": "pretended",
        "get_device_properties": card, "get_device_capability": (9, 0), "current_device": 0,
        "is_bf16_supported": True, "mem_get_info": (60 * GIGABYTE, 80 * GIGABYTE),
        "memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": GIGABYTE,
        "reset_peak_memory_stats": None, "empty_cache": None, "set_device": None,
        "synchronize": None, "current_stream": Stream(), "Stream": Stream(), "Event": Stream(),
        "stream": nullcontext(), "manual_seed": None, "manual_seed_all": None,
    }  # fmt: skip
    caches = [flex._compiled, flex._kept_mask, head._compiled_chunk]
    with ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, always(value)))
        for where, name, value in (
            (Tensor, "record_stream", always(None)),
            (torch, "compile", lambda call, **options: call),
            (torch, "Generator", Generator),
            (flex, "flex_attention", attention),
            # Inference's tensors, which are no views of each other, cannot be wrapped.
            (torch.inference_mode, "__enter__", _enter),
            (torch.inference_mode, "__exit__", _exit),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        for cache in caches:
            cache.cache_clear()
            stack.callback(cache.cache_clear)
        # A parameter of the CPU cannot take the data of a wrapper; it is swapped for one.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        stack.enter_context(Computing())
        stack.enter_context(Naming())
        waits.clear()
        yield waits
