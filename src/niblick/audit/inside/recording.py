"""Watches scoring and learning while an evaluation runs: which tokens are counted, and what is
learnt from when.

A cross entropy (or a gather of log-probabilities) whose targets are found in the synthetic stream
yields losses whose places are followed through slices, masks and sums. Losses summed without
gradients are *counted*; losses that a backward pass or gradient call starts from are *learnt from*
once weights move. The script's own computation is not changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_KEY = 6  # targets in a row that locate a place in the stream
_TAG = "_niblick_places"
_REARRANGING = {
    "reshape",
    "view",
    "flatten",
    "squeeze",
    "unsqueeze",
    "__getitem__",
    "transpose",
    "permute",
    "narrow",
    "select",
    "unflatten",
    "ravel",
    "view_as",
    "movedim",
    "index_select",
    "masked_select",
}
_UPDATING = {
    "add_",
    "sub_",
    "mul_",
    "copy_",
    "addcdiv_",
    "addcmul_",
    "lerp_",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__setitem__",
}
_REDUCING = {"sum", "mean", "nansum", "dot", "nanmean"}


@dataclass
class Trace:
    """What was seen, place by place; moments are numbers that grow with time.

    `counted`: moment and loss at which a place was first summed without gradients. `learnt`: moment
    at which something first moved because of a place. `first`: the loss at its first scoring of any
    kind. `by_delta`: the places whose first such move was of tensors that are no parameters of a
    module.
    """

    counted: dict[int, tuple[int, float]] = field(default_factory=dict)
    learnt: dict[int, int] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    by_delta: set[int] = field(default_factory=set)
    events: int = 0
    steps: int = 0


class Recorder(TorchFunctionMode):
    """Active inside `with`; `trace` holds what was seen. `stream` is what the evaluation was
    given.
    """

    def __init__(self, stream: list[int]) -> None:
        super().__init__()
        self.trace = Trace()
        self._stream, self._moment = stream, 0
        self._starts: dict[tuple[int, ...], list[int]] = {}
        for start in range(len(stream) - _KEY + 1):
            self._starts.setdefault(tuple(stream[start : start + _KEY]), []).append(start)
        self._unspent: set[int] = set()  # scored with gradients, not differentiated yet
        self._pending: set[int] = set()  # differentiated, weights not moved yet
        self._weights: set[int] = (
            set()
        )  # memory of parameters that the script holds as plain tensors
        self._hook: Any = None

    def __enter__(self) -> Any:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook = register_optimizer_step_post_hook(self._stepped)
        self._plain = torch.autograd.grad, torch.autograd.backward
        torch.autograd.grad = self._differentiating(self._plain[0], at_once=True)
        torch.autograd.backward = self._differentiating(self._plain[1], at_once=False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hook.remove()
        torch.autograd.grad, torch.autograd.backward = self._plain

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        self.trace.steps += 1
        moved = [each for group in optimizer.param_groups for each in group["params"]]
        self._learn(delta=not any(isinstance(each, torch.nn.Parameter) for each in moved))

    def _learn(self, *, delta: bool) -> None:
        self._moment += 1
        for place in self._pending - self.trace.learnt.keys():
            self.trace.learnt[place] = self._moment
            if delta:
                self.trace.by_delta.add(place)
        self._pending.clear()

    def _differentiating(self, plain: Any, *, at_once: bool) -> Any:
        def call(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            listed = outputs if isinstance(outputs, tuple | list) else [outputs]
            tags = [getattr(each, _TAG, None) for each in listed]
            known = [tag for tag in tags if tag is not None]
            self._pending |= (
                {p for tag in known for p in tag.flatten().tolist() if p >= 0}
                if known
                else self._unspent
            )
            self._unspent = set()
            out = plain(outputs, *args, **kwargs)
            if at_once:  # the gradients go to the script, which applies them itself
                inputs = args[0] if args else kwargs.get("inputs", ())
                listed = inputs if isinstance(inputs, tuple | list) else [inputs]
                self._learn(delta=not any(isinstance(each, torch.nn.Parameter) for each in listed))
            return out

        return call

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._pending and args and self._moves_weights(name, args[0]):
            self._learn(delta=False)
        out = func(*args, **kwargs)
        if not isinstance(out, torch.Tensor):
            return out
        if func is F.cross_entropy or func is F.nll_loss:
            self._scored(func, out, *_pair(args, kwargs))
        elif func is torch.gather or func is torch.Tensor.gather:
            self._gathered(out, *args[:3], **kwargs)
        else:
            self._follow(name, out, args, kwargs)
        return out

    def _moves_weights(self, name: str, target: Any) -> bool:
        """Whether a call changes a parameter in place: an update that no optimizer of torch
        makes.
        """
        if name == "__get__" and isinstance(target, torch.nn.Parameter):
            self._weights.add(target.data_ptr())
            return False
        if name not in _UPDATING or not isinstance(target, torch.Tensor):
            return False
        return isinstance(target, torch.nn.Parameter) or target.data_ptr() in self._weights

    def _follow(self, name: str, out: torch.Tensor, args: Any, kwargs: Any) -> None:
        """Carries places from a tensor of losses to what is made of it."""
        tagged = [each for each in args if isinstance(each, torch.Tensor) and hasattr(each, _TAG)]
        if not tagged or not out.is_floating_point():
            return
        places = getattr(tagged[0], _TAG)
        if name in _REDUCING:
            masked = _masked(name, places, args)
            if not out.requires_grad:
                self._count(masked, tagged[0])
            places = masked.flatten()
        elif name in _REARRANGING and args[0] is tagged[0]:
            try:
                places = getattr(places, name)(*args[1:], **kwargs)
            except Exception:  # noqa: BLE001 - a form that integers do not take: the trail ends here
                return
        elif out.shape == places.shape:
            places = _masked(name, places, args)
        else:
            places = torch.cat([getattr(each, _TAG).flatten() for each in tagged])
        setattr(out, _TAG, places)

    def _count(self, places: torch.Tensor, losses: torch.Tensor) -> None:
        self._moment += 1
        values = losses.detach().flatten().tolist() if losses.shape == places.shape else []
        flat = places.flatten().tolist()
        for index, place in enumerate(flat):
            if place >= 0:
                loss = values[index] if len(values) == len(flat) else math.nan
                self.trace.counted.setdefault(place, (self._moment, loss))

    def _scored(self, func: Any, out: torch.Tensor, scores: Any, targets: Any) -> None:
        if targets is None or targets.is_floating_point() or targets.numel() < _KEY:
            return
        flat = scores.detach().float()
        if scores.dim() > 2:  # (B, V, T), as torch wants it
            flat = flat.movedim(1, -1).reshape(-1, scores.size(1))
        logs = flat if func is F.nll_loss else torch.log_softmax(flat, -1)
        wanted = targets.detach().reshape(-1)
        losses = -logs.gather(-1, wanted.clamp(0, logs.size(-1) - 1)[:, None])[:, 0]
        self._note(out, targets, losses)

    def _gathered(
        self, out: torch.Tensor, scores: Any, dim: Any = None, index: Any = None, **_: Any
    ) -> None:
        fits = (
            isinstance(index, torch.Tensor) and index.dim() == scores.dim() and index.size(-1) == 1
        )
        if (
            not fits
            or dim not in (-1, scores.dim() - 1)
            or scores.size(-1) < 32
            or index.numel() < _KEY
        ):
            return
        values = out.detach().float().reshape(-1)
        is_log = bool((values <= 1e-4).all())
        if is_log or bool(((values >= 0) & (values <= 1 + 1e-4)).all()):
            self._note(out, index, -values if is_log else -values.clamp_min(1e-30).log())

    def _note(self, out: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> None:
        places = self._locate(targets.detach().reshape(-1).tolist())
        found = {
            place: loss for place, loss in zip(places, losses.tolist(), strict=True) if place >= 0
        }
        if not found:
            return
        self.trace.events += 1
        self._moment += 1
        for place, loss in found.items():
            self.trace.first.setdefault(place, loss)
        tag = torch.tensor(places)
        whole = out.numel() == len(places)
        setattr(out, _TAG, tag.reshape(out.shape) if whole else tag)
        if out.requires_grad:
            self._unspent |= set(found)
        elif not whole:  # a mean or sum already
            self._count(tag, losses)

    def _locate(self, targets: list[int]) -> list[int]:
        """The place in the stream of each target, -1 where it is not sure; rows of a batch are runs
        of their own.
        """
        places = [-1] * len(targets)
        index = 0
        while index <= len(targets) - _KEY:
            starts = self._starts.get(tuple(targets[index : index + _KEY]), ())
            if len(starts) != 1:
                index += 1
                continue
            run = 0
            while _same(targets, index + run, self._stream, starts[0] + run):
                places[index + run] = starts[0] + run
                run += 1
            index += run
        return places


def _same(one: list[int], at: int, other: list[int], there: int) -> bool:
    return at < len(one) and there < len(other) and one[at] == other[there]


def _masked(name: str, places: torch.Tensor, args: Any) -> torch.Tensor:
    """`places` without those that a factor of zero or a condition leaves out."""
    if name not in {"mul", "__mul__", "__rmul__", "where", "multiply", "dot", "masked_fill"}:
        return places
    for each in args:
        if (
            isinstance(each, torch.Tensor)
            and not hasattr(each, _TAG)
            and each.shape == places.shape
        ):
            kept = ~each if name == "masked_fill" and each.dtype == torch.bool else each != 0
            places = torch.where(kept, places, torch.full_like(places, -1))
    return places


def _pair(args: Any, kwargs: Any) -> tuple[Any, Any]:
    return (args[0] if args else kwargs.get("input")), (
        args[1] if len(args) > 1 else kwargs.get("target")
    )
