"""What tensor and array operations do to shadow values: the small part of torch and numpy that matters here."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

from niblick.audit.flow.access import Access
from niblick.audit.flow.boxes import (
    Array,
    Box,
    collect,
    depends,
    elementwise,
    is_token,
    known,
    masked,
    merge,
    reduced,
    shaped,
    snapshot,
    target_bits,
)
from niblick.audit.flow.objects import CallEvent, Dotted, Function, Module, ScoreEvent

_ONE: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "log": np.log, "log2": np.log2, "abs": np.abs, "neg": np.negative, "sqrt": np.sqrt, "sign": np.sign,
    "floor": np.floor, "ceil": np.ceil, "round": np.round, "square": np.square, "logical_not": np.logical_not,
    "bitwise_not": np.invert, "negative": np.negative, "absolute": np.abs,
}
_TWO: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "subtract": np.subtract, "mul": np.multiply, "multiply": np.multiply,
    "div": np.true_divide, "divide": np.true_divide, "floor_divide": np.floor_divide, "remainder": np.mod, "mod": np.mod,
    "maximum": np.maximum, "minimum": np.minimum, "bitwise_xor": np.bitwise_xor, "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or, "logical_and": np.logical_and, "logical_or": np.logical_or, "pow": np.power,
    "power": np.power, "left_shift": np.left_shift, "right_shift": np.right_shift, "logaddexp": np.logaddexp,
    "true_divide": np.true_divide, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "fmod": np.fmod, "logical_xor": np.logical_xor,
}
_OPERATORS: dict[str, type[ast.operator]] = {
    "bitwise_xor": ast.BitXor, "add": ast.Add, "mul": ast.Mult, "multiply": ast.Mult, "bitwise_or": ast.BitOr, "sub": ast.Sub,
    "remainder": ast.Mod, "mod": ast.Mod, "bitwise_and": ast.BitAnd, "fmod": ast.Mod, "div": ast.Div, "divide": ast.Div, "true_divide": ast.Div, "left_shift": ast.LShift,
}
_SAME = frozenset({
    "to", "float", "double", "half", "bfloat16", "long", "int", "short", "cpu", "cuda", "detach", "clone", "contiguous", "numpy",
    "astype", "copy", "type", "bool", "requires_grad_", "pin_memory", "share_memory_", "from_numpy", "as_tensor", "tensor",
    "asarray", "array", "ascontiguousarray", "clamp", "clip", "clamp_min", "clamp_max", "nan_to_num", "relu", "sigmoid", "tanh",
    "log_softmax", "softmax", "erf", "type_as", "byte", "char", "Tensor", "detach_", "asanyarray", "retain_grad", "log1p", "expm1",
    "silu", "gelu", "dropout", "record_stream", "int64", "int32", "uint64", "uint32", "uint16", "int16", "float64", "float32",
    "uint8", "int8", "LongTensor", "IntTensor", "FloatTensor", "alias", "frombuffer", "cumsum", "float_power", "normalize",
})
_REDUCE: dict[str, Callable[..., Any]] = {
    "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "any": np.any, "all": np.all, "prod": np.prod,
    "amax": np.max, "amin": np.min, "nansum": np.nansum, "count_nonzero": np.count_nonzero, "std": np.std, "var": np.var,
    "average": np.mean, "logsumexp": np.max, "norm": np.sum, "nanmean": np.mean, "median": np.median,
}
_CREATE = {"zeros": 0, "ones": 1, "empty": None, "full": None, "rand": None, "randn": None, "new_zeros": 0, "new_ones": 1,
           "new_empty": None, "new_full": None, "randint": None, "normal": None}
_LIKE = {"zeros_like": 0, "ones_like": 1, "empty_like": None, "full_like": None, "rand_like": None, "randn_like": None}
_IN_PLACE = frozenset({"copy_", "add_", "sub_", "mul_", "div_", "lerp_", "addcmul_", "addcdiv_", "index_add_", "index_copy_",
                       "scatter_", "scatter_add_", "masked_fill_", "clamp_", "index_put_", "put_", "set_", "addmm_", "masked_scatter_"})
_RESET = frozenset({"zero_", "fill_", "normal_", "uniform_", "zeros_", "ones_", "constant_", "orthogonal_", "kaiming_uniform_",
                    "xavier_uniform_", "kaiming_normal_", "trunc_normal_", "xavier_normal_"})
_SELECT = frozenset({"index_select", "take", "take_along_dim", "take_along_axis", "gather", "masked_select", "compress", "embedding"})
_LOSSES = frozenset({"cross_entropy", "nll_loss", "fused_cross_entropy", "linear_cross_entropy", "CrossEntropyLoss", "NLLLoss"})


class Tensors(Access):
    """Tensor methods and functions; each returns NotImplemented when it does not know the name."""

    def score(self, source: Box, target: Box, node: ast.AST | None, reduce: bool = False) -> Box:
        """The (negative) log-probability of `target` under what `source` was computed from."""
        source = self.frozen([source])[0]
        targets = depends(target)
        self.interest += 1
        self.order += 1
        number = len(self.trace.scores) + 1
        kinds = frozenset(self.leaves[r].kind for r in source.roots if self.leaves[r].seen or self.leaves[r].kind == "module")
        self.trace.scores.append(ScoreEvent(
            number=number, order=self.order, targets=targets, seen=source.seen | target.seen, leaf_kinds=kinds,
            where=self.where(node), no_grad=self.no_grad > 0, certain=self.uncertain <= 0, widened=bool(self.widened),
            marks=source.marks | target.marks,
        ))
        out = Box(
            shape=target.shape, pos=target.pos, nll=True, seen=source.seen, roots=source.roots,
            targets=targets if target.pos is None else 0, scores=frozenset({number}) | source.scores,
            marks=(target.marks - {"val", "numpy", "mixed", "hashed"}) | (source.marks & {"train"}) | {"nll"}, key=source.key,
        )
        return reduced(out) if reduce else out

    def forward(self, module: Module, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """A model's output: logits of its tokens, or the loss of its targets where those are given too."""
        boxes = self.frozen([b for a in (*args, *named.values()) for b in collect(a)])
        leaves = {module.leaf, *(a.leaf for a in (*args, *named.values()) if isinstance(a, Module))}
        source = merge(boxes, roots=frozenset(leaves).union(*[b.roots for b in boxes]))
        for leaf in leaves:
            source.seen |= self.leaves[leaf].seen
        source.targets = 0
        source.nll = False
        tokens = [b for b in boxes if is_token(b) and b.marks.isdisjoint({"index", "bytes"})]
        self.hooked = self.hooked or self.hooks > 0
        if self.hooks and any(depends(b) for b in tokens):
            self.order += 1
            self.trace.calls.append(CallEvent(
                name="calibration", where=self.where(node), certain=self.uncertain <= 0, order=self.order))
        if len(tokens) >= 2 and (target := _shifted(tokens)) is not None:
            return self.score(source, target, node)
        self.interest += 1
        source.shape = None
        source.marks = (source.marks - {"val", "numpy", "index"}) | {"logits"}
        return source

    def make(self, name: str, args: list[Any], named: dict[str, Any]) -> Any:
        """New tensors: zeros, ones, full and the random ones."""
        if name in _LIKE:
            base = known(args[0])
            shape, fill = base.shape, _LIKE[name]
        else:
            shape, fill = _shape_of(args if not (args and isinstance(args[0], (tuple, list))) else args[0], named), _CREATE[name]
            if name in {"full", "new_full"}:
                sizes = args[0] if args else named.get("size", named.get("shape"))
                shape = _shape_of(sizes if isinstance(sizes, (tuple, list)) else [sizes], {})
                value = args[1] if len(args) > 1 else named.get("fill_value")
                fill = value if isinstance(value, (int, float)) else None
            if name == "randint":
                shape = None
        out = Box(shape=shape)
        if shape is not None and None not in shape and fill is not None:
            size = int(np.prod([int(s or 0) for s in shape])) if shape else 1
            if size <= 1_000_000:
                out.val = np.full(tuple(int(s or 0) for s in shape), fill)
        if named.get("requires_grad") is True:
            self.make_leaf(out, name)
        return out

    def make_leaf(self, box: Box, name: str) -> Box:
        box.roots = box.roots | {self.new_leaf("tensor", name)}
        box.live, box.val, box.nll = True, None, False
        box.marks |= {"param"}
        return box

    def tensor_call(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST, method: bool) -> Any:
        """The result of an operation by its last name; NotImplemented when it is none of ours."""
        if name in _LOSSES:
            return self.loss(args, named, node)
        if not method and (name in _CREATE or name in _LIKE):
            return self.make(name, args, named)
        if method and name in _CREATE and name.startswith("new_"):
            return self.make(name, args[1:], named)
        if method and name in _LIKE:
            return self.make(name, args, named)
        if not args:
            return NotImplemented
        if name in _SELECT:
            return self.select(name, args, named, node)
        first = known(args[0])
        if method and (name in _IN_PLACE or name in _RESET):
            return self.in_place(name, first, args[1:], named, node)
        if name in _SAME:
            return self.same(name, first, args, named)
        if name in _REDUCE:
            return self.reduce(name, first, args, named)
        if name in _ONE:
            return elementwise(self.frozen([first]), _ONE[name])
        if name in _TWO and len(args) > 1:
            return self.two(name, first, known(args[1]), node)
        return self.reshaping(name, first, args, named)

    def two(self, name: str, first: Box, second: Box, node: ast.AST) -> Box:
        a, b = self.frozen([first, second])
        if name in _OPERATORS:
            return self.binary(_OPERATORS[name](), a, b, node)  # type: ignore[no-any-return]
        out = elementwise([a, b], _TWO[name])
        if name in {"eq", "ne", "lt", "le", "gt", "ge"}:
            out.nll, out.marks = False, out.marks | {"index"}
        self.check_report(a, b, out)
        return out

    def same(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Box:
        if name in {"clamp", "clip", "clamp_min", "clamp_max"}:
            if name == "clamp_max":
                named = {"max": args[1]} if len(args) > 1 else named
            return snapshot(self.frozen([first])[0], val=self.clipped(first, args[1:] if name != "clamp_max" else [], named))
        if name == "requires_grad_":
            if not first.roots and not (len(args) > 1 and args[1] is False):
                return self.make_leaf(first, "tensor")
            return first
        out = snapshot(first)
        out.live, out.table = first.live, first.table
        if name in {"clone", "copy", "astype", "float", "bfloat16", "half"} or (name == "to" and first.live):
            out = self.frozen([first])[0]
            out = snapshot(out) if out is first else out
            if name != "clone":
                out.live, out.seen = first.live, first.seen
        if name in {"int", "long", "int64", "int32"} and first.val is not None and first.val.dtype.kind == "f":
            out.val = first.val.astype(np.int64)
        if named.get("requires_grad") is True:
            self.make_leaf(out, "tensor")
        if name in {"tensor", "as_tensor", "array", "asarray"} and isinstance(args[0], list) and not args[0]:
            out.shape = (0,)
        return out

    def clipped(self, box: Box, rest: list[Any], named: dict[str, Any]) -> Array | None:
        """Known content after a clamp with known bounds."""
        low = named.get("min", named.get("a_min", rest[0] if rest else None))
        high = named.get("max", named.get("a_max", rest[1] if len(rest) > 1 else None))
        bounds = [None if v is None else _size(v) if not isinstance(v, float) else v for v in (low, high)]
        if box.val is None or all(v is None for v in bounds) or any(isinstance(v, Box) and b is None for v, b in zip((low, high), bounds, strict=True)):
            return None
        return np.clip(box.val, *bounds)

    def reduce(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Any:
        axis = named.get("dim", named.get("axis", args[1] if len(args) > 1 else None))
        box = self.frozen([first])[0]
        if name in {"max", "min"} and len(args) > 1 and isinstance(args[1], Box):
            return elementwise(self.frozen([first, args[1]]), np.maximum if name == "max" else np.minimum)
        if box.nll and box.pos is not None and name in {"sum", "mean"}:
            kept = target_bits(box)
            for number in box.scores:
                self.trace.kept[number] = self.trace.kept.get(number, 0) | kept
        if axis is None:
            return reduced(box, _REDUCE[name])
        if isinstance(axis, int) and box.pos is not None and not box.nll:
            keep = bool(named.get("keepdim", named.get("keepdims", False)))
            out = shaped(snapshot(box, val=None), lambda a: a.max(axis=axis, keepdims=keep))
            return (out, Box()) if name in {"max", "min"} and "numpy" not in box.marks else out
        out = merge([box], nll=False)
        out.key = box.key
        return out

    def loss(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """Cross-entropy: its second tensor is the target, and `reduction` says whether one number comes out."""
        boxes = [known(a) for a in args if isinstance(a, (Box, list))]
        target = named.get("target", named.get("targets", named.get("labels")))
        if target is None and len(boxes) > 1:
            target = boxes[1]
        if not boxes or not isinstance(target, Box):
            target = next((b for b in boxes[1:] if is_token(b)), Box())
        source = merge(self.frozen(boxes[:1]))
        out = self.score(source, target, node)
        return out if named.get("reduction") in {"none", None} and named.get("reduction") == "none" else reduced(out)

    def select(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Box:
        boxes = [known(a) for a in (*args, *named.values()) if isinstance(a, (Box, list, np.ndarray))]
        if len(boxes) < 2:
            return merge(self.frozen(boxes))
        source, index = (boxes[1], boxes[0]) if name == "embedding" else (boxes[0], boxes[-1])
        if name in {"masked_select", "compress"} or not is_token(index) or "index" in index.marks:
            out = snapshot(self.frozen([source])[0], val=None)
            if index.val is not None and name in {"index_select", "take"} and index.val.dtype.kind in "iu" and index.val.ndim == 1:
                return shaped(source, lambda a: a[index.val])
            return out
        return self.looked_up(source, [index], [index], node)

    def in_place(self, name: str, first: Box, rest: list[Any], named: dict[str, Any], node: ast.AST) -> Box:
        if name == "clamp_" and not first.live:
            first.val = self.clipped(first, rest, named)
            return first
        if first.live:
            if name in _RESET:
                self.reset_leaves(first.roots)
            else:
                self.update_param(first, [b for a in rest for b in collect(a)], node, replace=name in {"copy_", "set_"})
            return first
        sources = self.frozen([b for a in rest for b in collect(a)])
        if name in {"scatter_add_", "index_add_", "scatter_", "index_put_"} and any(is_token(b) for b in sources):
            first.table |= 1
            first.val = None
            return first
        if name in _RESET:
            first.val = np.zeros_like(first.val) if name == "zero_" and first.val is not None else None
            first.pos = first.key = None
            return first
        mixed = elementwise([self.frozen([first])[0], *sources]) if name != "copy_" else (sources or [Box()])[0]
        if name == "masked_fill_" and sources:
            return masked(first, Box(val=None if sources[0].val is None else ~sources[0].val.astype(bool)))
        self.check_report(first, merge(sources), mixed)
        if name == "mul_" and sources and mixed.nll:
            mixed = masked(mixed, sources[0])
        for field in ("pos", "key", "deps", "targets", "seen", "roots", "scores", "marks", "nll"):
            setattr(first, field, getattr(mixed, field))
        first.val = mixed.val if name == "copy_" else None
        return first

    def reset_leaves(self, roots: frozenset[int]) -> None:
        """A fresh start: what these leaves had learnt is overwritten (a module's only if it is an adapter)."""
        for root in roots:
            if self.leaves[root].kind != "module" or "adapter" in self.leaves[root].marks:
                self.leaves[root].seen = 0

    def reshaping(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Any:
        rest = args[1:]
        box = self.frozen([first])[0] if not first.live else first
        if name in {"reshape", "view", "flatten", "ravel", "view_as", "reshape_as"}:
            sizes = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
            shape = tuple(_size(s) for s in sizes) if sizes and name in {"reshape", "view"} else (-1,)
            if any(s is None for s in shape):
                known_sizes = [s for s in shape if isinstance(s, int) and s >= 0]
                shape = (-1,) if len(known_sizes) == 0 else (-1, *known_sizes)
            if name == "flatten" and rest:
                shape = (-1,)
            out = shaped(box, lambda a: a.reshape(shape))
            out.live = box.live
            return out
        if name == "unsqueeze" and rest and isinstance(rest[0], int):
            return shaped(box, lambda a: np.expand_dims(a, rest[0]))
        if name in {"squeeze"}:
            axis = rest[0] if rest and isinstance(rest[0], int) else None
            return shaped(box, lambda a: np.squeeze(a, axis) if axis is None or a.shape[axis] == 1 else a)
        if name in {"transpose", "swapaxes"} and len(rest) == 2:
            return shaped(box, lambda a: np.swapaxes(a, rest[0], rest[1]))
        if name in {"t", "permute"}:
            order = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
            return shaped(box, lambda a: a.transpose(tuple(order)) if order else a.T)
        if name in {"expand", "expand_as", "broadcast_to", "repeat", "tile"}:
            return snapshot(box, shape=None, val=None)
        if name == "roll":
            return shaped(box, lambda a: np.roll(a, rest[0] if rest else named.get("shifts", 0)))
        if name in {"flip", "fliplr"}:
            return shaped(box, lambda a: np.flip(a))
        if name in {"narrow"} and len(rest) == 3 and all(isinstance(r, int) for r in rest):
            return shaped(box, lambda a: np.take(a, range(rest[1], rest[1] + rest[2]), axis=rest[0]))
        if name == "unfold" and len(rest) == 3 and box.pos is not None and box.pos.ndim == 1:
            size, step = _size(rest[1]), _size(rest[2])
            if size and step and size <= (box.shape or (0,))[0]:  # type: ignore[operator]
                return shaped(box, lambda a: np.lib.stride_tricks.sliding_window_view(a, size)[::step])
        return self.joining(name, box, args, named)

    def joining(self, name: str, box: Box, args: list[Any], named: dict[str, Any]) -> Any:
        if name in {"cat", "concatenate", "concat", "stack", "hstack", "vstack"} and isinstance(args[0], (list, tuple)):
            parts = self.frozen([known(a) for a in args[0]])
            axis = named.get("dim", named.get("axis", args[1] if len(args) > 1 else 0))
            if len(parts) == 1 and name not in {"stack", "vstack"}:
                return parts[0]
            return _cat(parts, axis if isinstance(axis, int) else 0, name in {"stack", "vstack"})
        if name == "where":
            return self.where_call(args)
        if name in {"nonzero", "argwhere", "flatnonzero"}:
            return self.nonzero(box, name, named)
        if name in {"arange", "linspace"}:
            ends = [_size(a) for a in args if not isinstance(a, Dotted)]
            if all(isinstance(e, int) for e in ends) and name == "arange" and abs((ends[-1] if len(ends) < 3 else ends[1]) or 0) < 10**7:
                return known(np.arange(*ends))
            return Box(marks=frozenset({"index"}))
        if name in {"item", "tolist"}:
            if name == "tolist" and box.shape and box.shape[0] is not None and (box.pos is not None or box.val is not None):
                return self.iterate(box, None)
            if box.val is not None and box.val.size == 1 and not (box.pos is not None or box.roots or box.deps or box.key is not None):
                return box.val.reshape(-1)[0].item()
            return snapshot(box, shape=(), marks=box.marks | {"scalar"}) if name == "item" else snapshot(box)
        if name in {"numel", "__len__"}:
            return Box(shape=()) if box.shape is None or None in box.shape else int(np.prod([int(s or 0) for s in box.shape]))
        if name in {"size", "dim", "ndimension"}:
            return self.size(box, args, name)
        if name in {"unique", "sort", "argsort", "topk", "cummax", "cummin"}:
            out = merge([box])
            return (out, snapshot(out)) if name in {"sort", "topk", "cummax", "cummin"} else out
        if name in {"chunk", "split", "tensor_split", "array_split", "unbind"}:
            return [shaped(box, lambda a: a), shaped(box, lambda a: a)] if box.pos is None else self.iterate(box, None)[:8]
        if name in {"bincount", "histogram"}:
            out = merge([box], table=1)
            out.marks |= {"count"}
            return out
        return NotImplemented

    def size(self, box: Box, args: list[Any], name: str) -> Any:
        if name != "size":
            return Box(shape=()) if box.shape is None else len(box.shape)
        if box.shape is None:
            return Box(shape=())
        sizes = tuple(Box(shape=()) if s is None else s for s in box.shape)
        if len(args) > 1 and isinstance(args[1], int):
            return sizes[args[1]] if -len(sizes) <= args[1] < len(sizes) else Box(shape=())
        return sizes

    def where_call(self, args: list[Any]) -> Any:
        if len(args) < 3:
            found = self.nonzero(known(args[0]), "where", {"as_tuple": True})
            return found
        condition, left, right = (self.frozen([known(a)])[0] for a in args[:3])
        if condition.val is not None and condition.pos is None:
            if left.pos is not None and right.pos is None:
                return masked(left, condition)
            if right.pos is not None and left.pos is None:
                return masked(right, Box(val=~condition.val.astype(bool)))
        out = elementwise([left, right])
        if condition.key is not None and out.key is None:
            out.key = condition.key
        return out

    def nonzero(self, box: Box, name: str, named: dict[str, Any]) -> Any:
        marks = frozenset({"index"})
        if box.val is not None:
            found = [Box(shape=i.shape, val=i, marks=marks) for i in np.nonzero(box.val)]
        elif box.shape is not None and len(box.shape) == 1 and box.shape[0] is not None:
            found = [Box(shape=box.shape, val=np.arange(box.shape[0]), marks=marks)]
        else:
            found = [Box(marks=marks)]
        if name == "flatnonzero":
            return found[0]
        if name == "nonzero" and not named.get("as_tuple") and "numpy" not in box.marks and not isinstance(named.get("np"), bool):
            if len(found) == 1 and found[0].val is not None:
                column = found[0].val.reshape(-1, 1)
                return Box(shape=column.shape, val=column, marks=marks)
            return found[0]
        return tuple(found)


def _shifted(tokens: list[Box]) -> Box | None:
    """Of a model's token arguments, the one that lies one position after another: its targets."""
    for i, later in enumerate(tokens):
        for j, earlier in enumerate(tokens):
            if i == j or later.pos is None or earlier.pos is None or later.pos.shape != earlier.pos.shape:
                continue
            both = (later.pos >= 0) & (earlier.pos >= 0)
            if both.any() and ((later.pos - earlier.pos)[both] == 1).mean() > 0.5:
                return later
    if tokens[1].pos is None or tokens[0].pos is None:
        return tokens[1] if depends(tokens[1]) or target_bits(tokens[1]) else None
    return None


def _shape_of(sizes: Any, named: dict[str, Any]) -> tuple[int | None, ...] | None:
    if not isinstance(sizes, (tuple, list)):
        return None
    if not sizes and "size" in named:
        sizes = named["size"] if isinstance(named["size"], (tuple, list)) else [named["size"]]
    out = [s for s in sizes if not isinstance(s, Dotted)]
    return tuple(_size(s) for s in out)


def _size(value: Any) -> int | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, Box) and value.val is not None and value.val.size == 1:
        return int(value.val.reshape(-1)[0])
    return None


def _cat(parts: list[Box], axis: int, stack: bool) -> Box:
    """Concatenation (or stacking) with everything known per element kept."""
    out = merge(parts)
    shapes = [p.shape for p in parts]
    out.nll = bool(parts) and all(p.nll for p in parts)
    if not parts or any(s is None or None in s for s in shapes):
        return out
    join = np.stack if stack else np.concatenate
    for name in ("pos", "val", "key"):
        arrays = [getattr(p, name) for p in parts]
        if all(a is None for a in arrays) or (name == "val" and any(a is None for a in arrays)):
            continue
        filled = [np.full([int(x or 0) for x in (s or ())], -1) if a is None else a for a, s in zip(arrays, shapes, strict=True)]
        try:
            joined = join(filled, axis=axis)
        except ValueError:
            continue
        setattr(out, name, joined)
        out.shape = joined.shape
    return out


__all__ = ["Function", "Tensors"]
