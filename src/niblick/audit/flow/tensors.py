"""What tensor and array operations do to shadow values: the small part of torch and numpy that
matters here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

from niblick.audit.flow.access_index import OCTETS, RAW, TEXT, as_text
from niblick.audit.flow.boxes import (
    POSITIVE,
    Box,
    collect,
    depends,
    elementwise,
    is_token,
    known,
    merge,
    reduced,
    replace_content,
    shaped,
    snapshot,
)
from niblick.audit.flow.inplace import _RESET, _WRITES, COMPARISONS, OPERATORS, InPlace, changes
from niblick.audit.flow.joining import view
from niblick.audit.flow.keeping import ALONE, ALPHABET, LEAST, SUMMED
from niblick.audit.flow.narrowing import ALTERED, narrows
from niblick.audit.flow.objects import Function, Instance
from niblick.audit.flow.scoring import _LOSSES, ONE_HOT
from niblick.audit.flow.shapes import CREATE, LIKE, boolean
from niblick.audit.words import words


def _numpy(text: str) -> dict[str, Callable[..., Any]]:
    """numpy's functions by the words of a text; `word=name` where numpy's name is another."""
    pairs = (word.partition("=") for word in text.split())
    return {word: getattr(np, name or word) for word, _, name in pairs}


_ONE = _numpy(
    "exp log log2 abs sqrt sign floor ceil round square logical_not negative absolute"
    " neg=negative bitwise_not=invert"
)
_NOT_NEGATIVE = words("square abs absolute exp mse_loss l1_loss smooth_l1_loss huber_loss")
_OF_LOGITS = words("cross_entropy fused_cross_entropy linear_cross_entropy")
_KEEP_SIGN = words("to float double half bfloat16 cpu cuda detach clone contiguous sum mean")
_TWO = _numpy("maximum minimum logical_and logical_or logical_xor logaddexp")
_SAME = words(
    "to float double half bfloat16 long int short cpu cuda detach clone contiguous numpy astype"
    " copy type bool requires_grad_ pin_memory share_memory_ from_numpy as_tensor tensor asarray"
    " array ascontiguousarray clamp clip clamp_min clamp_max nan_to_num relu sigmoid tanh"
    " log_softmax softmax erf type_as byte char Tensor detach_ asanyarray retain_grad log1p"
    " expm1 silu gelu dropout record_stream int64 int32 uint64 uint32 uint16 int16 float64"
    " float32 uint8 int8 LongTensor IntTensor FloatTensor alias frombuffer cumsum"
    " normalize"
)
_REDUCE = {
    **_numpy(
        "sum mean max min any all prod nansum count_nonzero std var median amax=max amin=min"
        " average=mean norm=sum nanmean=mean argmax argmin"
    ),
    "logsumexp": lambda a, axis=None: np.logaddexp.reduce(a, axis),
}
_SELECT = words(
    "index_select take take_along_dim take_along_axis gather masked_select compress embedding"
)
_PICKS = words("topk sort unique quantile median kthvalue compress nanquantile mode")
_REMADE = words("repeat tile repeat_interleave unique unique_consecutive")
_VIEWING = words(
    "reshape view flatten ravel view_as reshape_as unsqueeze squeeze transpose swapaxes t permute"
    " expand expand_as broadcast_to narrow as_strided unfold detach numpy from_numpy as_tensor"
    " asarray frombuffer contiguous ascontiguousarray to cpu cuda float double long alias"
)
"""What may give a value that shares the memory of the first one."""
_TO_TEXT = words("decode Decode decode_ids DecodeIds")
_MEANS = words("mean average nanmean median sum")
_BENT = frozenset(
    ["relu", "tanh", "erf", "silu", "gelu", "normalize", "cumsum", "dropout", "nan_to_num"]
)


class Tensors(InPlace):
    """Tensor methods and functions; each returns NotImplemented when it does not know the name."""

    def tensor_call(
        self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST, method: bool
    ) -> Any:
        """The result of an operation by its last name; NotImplemented when it is none of ours."""
        if args and isinstance(args[0], Instance) and args[0].cls.is_row:
            args = [list(args[0].attrs.values()), *args[1:]]
        out = self.operation(name, args, named, node, method)
        first, given = args[0] if args else None, named.get("out")
        if isinstance(given, Box) and isinstance(out, Box):
            replace_content(given, out)
            out = self.shared(given)
        if name in _REMADE and isinstance(first, Box) and is_token(first) and _is_row(first):
            out = snapshot(first, shape=None, val=None) if out is NotImplemented else out
            for box in collect(out):
                if box.shape is None or _is_row(box):
                    box.marks |= {ALTERED}  # some tokens twice, or some not at all
        if isinstance(first, Box) and first.scores and name not in _LOSSES:
            for box in collect(out):
                if name in _PICKS:
                    self.warp(box, f"scores are picked by {name}")
                self.lost(box, first, name)
        return out

    def operation(
        self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST, method: bool
    ) -> Any:
        if name == "masked_select" and len(args) > 1:
            return self.item(args[0], args[1], node)
        if name in {"dot", "vdot"} and len(args) > 1:
            product = self.binary(ast.Mult(), known(args[0]), known(args[1]), node)
            return self.reduce("sum", known(product), [product], {})
        if name in _LOSSES:
            loss = self.loss(args, named, node)
            plain = len(args) == 2 and "weight" not in named and isinstance(args[1], Box)
            loss.marks |= (
                {POSITIVE} if plain and name in _OF_LOGITS and is_token(args[1]) else set()
            )
            return loss
        if not method and (name in CREATE or name in LIKE):
            return self.make(name, args, named)
        if method and name == "new_tensor":  # of the holder only the kind is taken
            return self.operation("tensor", args[1:], named, node, method=False)
        if method and name in CREATE and name.startswith("new_"):
            return self.make(name, args[1:], named)
        if method and name in LIKE:
            return self.make(name, args, named)
        if not args:
            return NotImplemented
        if (other := self.of_tokens(name, args, node, method)) is not NotImplemented:
            return other
        if name in _SELECT:
            return self.select(name, args, named, node)
        first = known(args[0])
        if (method and (changes(name) or name in _RESET)) or name in _WRITES:
            return self.in_place(name, first, args[1:], named, node)
        if name == "log1p" and "prob" in first.marks and not first.nll:  # of a weight, turned over
            name, first = "log", self.binary(ast.Add(), first, 1.0, node)
        if name in _SAME or name in _REDUCE:
            way = self.same if name in _SAME else self.reduce
            out = way(name, first, args, named)
            if isinstance(out, Box) and name in _KEEP_SIGN and POSITIVE in first.marks:
                out.marks |= {POSITIVE}
            return out
        if name in _ONE:
            out = elementwise(self.frozen([first]), _ONE[name])
            if name == "exp" and (first.nll or "logprob" in first.marks):
                out.marks = out.marks - {"logprob"} | {"prob"}
            elif name.startswith("log") and "prob" in first.marks:
                out.marks = out.marks - {"prob"} | {"logprob"}
            elif first.nll and name in {"sqrt", "square", "sign", "floor", "round"}:
                self.warp(out, f"scores go through {name}")
            out.marks |= {POSITIVE} if name in _NOT_NEGATIVE else set()
            return out
        if name in _NOT_NEGATIVE:
            out = merge(self.frozen([known(arg) for arg in args[:2]]))
            out.marks |= {POSITIVE}
            return out
        if (name in _TWO or name in OPERATORS or name in COMPARISONS) and len(args) > 1:
            return self.two(name, first, known(args[1]), node)
        out = self.reshaping(name, first, args, named)
        return view(out, first) if isinstance(out, Box) and name in _VIEWING else out

    def of_tokens(self, name: str, args: list[Any], node: ast.AST, method: bool) -> Any:
        """Tokens as text or as rows of which one entry is not nought; NotImplemented for others."""
        if method and name in _TO_TEXT and len(args) > 1 and is_token(known(args[1])):
            return as_text(known(args[1]))
        if method and name == "encode" and TEXT in known(args[0]).marks:
            return snapshot(args[0], marks=args[0].marks - {TEXT} | {OCTETS})
        if name == "one_hot" and is_token(args[0]) and args[0].pos is not None:
            ones = np.ones(args[0].pos.shape)
            return snapshot(args[0], val=ones, marks=args[0].marks | {ONE_HOT})
        if name == "einsum" and len(args) == 3 and isinstance(args[0], str):
            picked = self.picked_out(known(args[1]), known(args[2]), node)
            return (
                NotImplemented if picked is None else self.reduce("sum", picked, [picked, -1], {})
            )
        return NotImplemented

    def two(self, name: str, first: Box, second: Box, node: ast.AST) -> Box:
        a, b = self.frozen([first, second])
        if name in OPERATORS:
            return self.binary(OPERATORS[name](), a, b, node)  # type: ignore[no-any-return]
        if name in COMPARISONS:
            return self.compare_boxes(COMPARISONS[name](), a, b)
        out = elementwise([a, b], _TWO[name])
        if name == "logaddexp":
            self.mixture(a, b, out)
            self.mixture(b, a, out)
        if name in {"maximum", "minimum"}:
            self.bounded(name, a, b, out)
        self.check_report(a, b, out)
        return out

    def bounded(self, name: str, a: Box, b: Box, out: Box) -> None:
        """The smaller or larger of two: of scores, or of a score or a token and a bound."""
        if name == "minimum" and is_token(out) and narrows(a) and narrows(b):
            out.marks |= {ALTERED}
        if self.chosen([a, b]):
            self.warp(out, "the better of several scores is taken")
            return
        for score, other in ((a, b), (b, a)):
            if score.nll and "count" in other.marks and "prob" in score.marks:
                self.warp(out, f"the {name} of two shares of a token is taken")
            if score.nll and other.val is not None and other.val.size == 1:
                bound = float(other.val.reshape(-1)[0])
                probe = snapshot(score)
                low, high = (bound, None) if name == "maximum" else (None, bound)
                self.capped(probe, low, high)
                out.marks |= probe.marks

    def same(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Box:
        if name in {"clamp", "clip", "clamp_min", "clamp_max"}:
            return self.clamped(name, first, args, named)
        if name == "requires_grad_":
            if not first.roots and not (len(args) > 1 and args[1] is False):
                return self.make_leaf(first, "tensor")
            return first
        out = snapshot(first)
        out.marks -= {RAW}
        out.live, out.table = first.live, first.table
        if name in _VIEWING:
            view(out, first)
        if name in {"softmax", "log_softmax", "sigmoid"}:
            out.marks = out.marks - {"prob", "logprob", LEAST}
            out.marks |= {"logprob" if name == "log_softmax" else "prob"}
            out.val = None
        if first.val is not None and first.nll and name in _BENT:
            out.val = None
        if name in {"log1p", "expm1"}:
            out.val = None
            out.marks |= {"lse"} if name == "log1p" and out.roots else set()
        if name in {"clone", "copy", "astype", "float", "bfloat16", "half"} or (
            name == "to" and first.live
        ):
            out = self.frozen([first])[0]
            out = snapshot(out) if out is first else out
            if name != "clone":
                out.live, out.seen = first.live, first.seen
        if (
            name in {"int", "long", "int64", "int32"}
            and first.val is not None
            and first.val.dtype.kind == "f"
        ):
            out.val = first.val.astype(np.int64)
        if named.get("requires_grad") is True:
            self.make_leaf(out, "tensor")
        if name == "bool" or boolean(args[1:], named):
            out.marks |= {"flags"}
        if (
            name in {"tensor", "as_tensor", "array", "asarray"}
            and isinstance(args[0], list)
            and not args[0]
        ):
            out.shape = (0,)
        return out

    def reduce(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Any:
        axis = named.get("dim", named.get("axis", args[1] if len(args) > 1 else None))
        box = self.frozen([first])[0]
        if name in {"argmax", "argmin"}:
            if axis is None or box.key is None or box.pos is not None or box.roots:
                return merge([box])
            return merge([box], pos=box.key, shape=box.key.shape)  # a guess for each row of a table
        if name in {"max", "min"} and len(args) > 1 and isinstance(args[1], Box):
            return elementwise(
                self.frozen([first, args[1]]), np.maximum if name == "max" else np.minimum
            )
        if ONE_HOT in box.marks and box.nll:
            box = snapshot(box, marks=box.marks - {ONE_HOT})
            if name == "sum" and axis in (-1, len(box.shape or ())):
                return box
            box.val = box.val if name == "sum" and axis is None else None
        several = len(box.scores) > 1 and "train" not in box.marks
        losses = several and box.val is not None and bool((box.val >= 0).all())
        if losses and name in {"min", "amin"} and (box.nll or axis is None):
            box = snapshot(box, marks=box.marks | {LEAST})
            box = box if axis is None else self.warp(box, "the better of several scores is taken")
        if name in {"sum", "mean", "nansum", "average", "nanmean"}:
            box = self.added_up(box, None)
        if is_token(box) and not box.nll and not _of_entries(box, axis):
            box = snapshot(box, held=box.held | depends(box))
        if ALPHABET in box.marks and ALONE not in box.marks and axis is not None:
            box = snapshot(box, marks=box.marks - {ALPHABET} | {SUMMED})
        if name == "sum" and box.val is None and box.shape is None and _is_mask(box):
            return snapshot(reduced(box), val=np.asarray(1.0))
        if axis is None or (box.shape is not None and len(box.shape) == 1):
            out = reduced(box, _REDUCE[name])
            if name in _MEANS and not box.nll:
                self.averaged([box], out)
            return out
        if isinstance(axis, int) and box.pos is not None and not box.nll:
            keep = bool(named.get("keepdim", named.get("keepdims", False)))
            out = shaped(snapshot(box, val=None), lambda a: a.max(axis=axis, keepdims=keep))
            return (out, Box()) if name in {"max", "min"} and "numpy" not in box.marks else out
        out = merge([box], nll=False)
        out.key = box.key
        if name == "logsumexp":
            out.marks |= {"lse"}
            if "unpicked" in box.marks:
                self.warp(out, "a share of a mixture is one number for whatever token comes")
            if "uneven" in box.marks:
                self.warp(out, "what a model says of no token is mixed with probabilities of it")
        if box.nll and box.val is not None and isinstance(axis, int):
            out.val = np.asarray(_REDUCE[name](box.val, axis=axis))
            out.shape, out.nll = out.val.shape, box.nll
        return (out, Box()) if name in {"max", "min"} and "numpy" not in box.marks else out

    def clamped(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Box:
        """Values held between bounds."""
        if name == "clamp_max":
            named = {"max": args[1]} if len(args) > 1 else named
        rest = args[1:] if name != "clamp_max" else []
        out = snapshot(self.frozen([first])[0], val=self.clipped(first, rest, named))
        low = named.get("min", named.get("a_min", rest[0] if rest else None))
        high = named.get("max", named.get("a_max", rest[1] if len(rest) > 1 else None))
        if is_token(first) and high is not None and narrows(high):
            out.marks |= {ALTERED}
        self.capped(out if out.val is not None else snapshot(first), low, high)
        if first.nll and out.val is None:
            self.capped(out, low, high)
        return out


def _of_entries(box: Box, axis: Any) -> bool:
    """Whether a reduction is over the entries that tokens have in a table, not over tokens."""
    return box.key is not None and box.pos is None and axis in (-1, box.key.ndim)


def _is_mask(box: Box) -> bool:
    """Whether an unknown value weighs tokens: it is no score and no model made it."""
    return not box.scores and not box.roots and "train" not in box.marks


__all__ = ["Function", "Tensors"]


def _is_row(box: Box) -> bool:
    return box.shape is not None and len(box.shape) == 1
