"""What tensor and array operations do to shadow values: the small part of torch and numpy that
matters here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

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
    witness,
)
from niblick.audit.flow.objects import CallEvent, Function, Module, ScoreEvent
from niblick.audit.flow.shapes import CREATE, LIKE, Shapes
from niblick.audit.words import words

_ONE: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "log": np.log,
    "log2": np.log2,
    "abs": np.abs,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "square": np.square,
    "logical_not": np.logical_not,
    "bitwise_not": np.invert,
    "negative": np.negative,
    "absolute": np.abs,
}
_TWO: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "subtract": np.subtract,
    "mul": np.multiply,
    "multiply": np.multiply,
    "div": np.true_divide,
    "divide": np.true_divide,
    "floor_divide": np.floor_divide,
    "remainder": np.mod,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "bitwise_xor": np.bitwise_xor,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "pow": np.power,
    "power": np.power,
    "left_shift": np.left_shift,
    "right_shift": np.right_shift,
    "logaddexp": np.logaddexp,
    "true_divide": np.true_divide,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "fmod": np.fmod,
    "logical_xor": np.logical_xor,
}
_OPERATORS: dict[str, type[ast.operator]] = {
    "bitwise_xor": ast.BitXor,
    "add": ast.Add,
    "mul": ast.Mult,
    "multiply": ast.Mult,
    "bitwise_or": ast.BitOr,
    "sub": ast.Sub,
    "remainder": ast.Mod,
    "mod": ast.Mod,
    "bitwise_and": ast.BitAnd,
    "fmod": ast.Mod,
    "div": ast.Div,
    "divide": ast.Div,
    "true_divide": ast.Div,
    "left_shift": ast.LShift,
}
_SAME = words(
    "to float double half bfloat16 long int short cpu cuda detach clone contiguous numpy astype"
    " copy type bool requires_grad_ pin_memory share_memory_ from_numpy as_tensor tensor asarray"
    " array ascontiguousarray clamp clip clamp_min clamp_max nan_to_num relu sigmoid tanh"
    " log_softmax softmax erf type_as byte char Tensor detach_ asanyarray retain_grad log1p"
    " expm1 silu gelu dropout record_stream int64 int32 uint64 uint32 uint16 int16 float64"
    " float32 uint8 int8 LongTensor IntTensor FloatTensor alias frombuffer cumsum float_power"
    " normalize"
)
_REDUCE: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "any": np.any,
    "all": np.all,
    "prod": np.prod,
    "amax": np.max,
    "amin": np.min,
    "nansum": np.nansum,
    "count_nonzero": np.count_nonzero,
    "std": np.std,
    "var": np.var,
    "average": np.mean,
    "logsumexp": np.max,
    "norm": np.sum,
    "nanmean": np.mean,
    "median": np.median,
}
_IN_PLACE = words(
    "copy_ add_ sub_ mul_ div_ lerp_ addcmul_ addcdiv_ index_add_ index_copy_ scatter_"
    " scatter_add_ masked_fill_ clamp_ index_put_ put_ set_ addmm_ masked_scatter_"
)
_RESET = words(
    "zero_ fill_ normal_ uniform_ zeros_ ones_ constant_ orthogonal_ kaiming_uniform_"
    " xavier_uniform_ kaiming_normal_ trunc_normal_ xavier_normal_"
)
_SELECT = words(
    "index_select take take_along_dim take_along_axis gather masked_select compress embedding"
)
_MOST_ROWS = 4_000_000
_KEYED = frozenset({"scatter_add_", "index_add_", "scatter_", "index_put_"})
_PICKS = words("topk sort unique quantile median kthvalue masked_select compress nanquantile mode")
_BENT = frozenset(
    ["relu", "tanh", "erf", "silu", "gelu", "normalize", "cumsum", "dropout", "nan_to_num"]
)
_LOSSES = words(
    "cross_entropy nll_loss fused_cross_entropy linear_cross_entropy CrossEntropyLoss NLLLoss"
)


class Tensors(Shapes):
    """Tensor methods and functions; each returns NotImplemented when it does not know the name."""

    def score(self, source: Box, target: Box, node: ast.AST | None, picked: bool = False) -> Box:
        """The loss of `target` under what `source` was computed from, or, where it is `picked` out
        of a distribution, its log-probability or probability.
        """
        source = self.frozen([source])[0]
        targets = depends(target)
        self.check_answer(source, target, node)
        self.interest += 1
        self.order += 1
        number = len(self.trace.scores) + 1
        kinds = frozenset(
            self.leaves[r].kind
            for r in source.roots
            if self.leaves[r].seen or self.leaves[r].kind == "module"
        )
        self.trace.scores.append(
            ScoreEvent(
                number=number,
                order=self.order,
                targets=targets,
                seen=source.seen | target.seen,
                leaf_kinds=kinds,
                where=self.where(node),
                no_grad=self.no_grad > 0,
                certain=self.uncertain <= 0,
                widened=bool(self.widened),
                marks=source.marks | target.marks,
            )
        )
        out = Box(
            shape=target.shape,
            pos=target.pos,
            val=_loss(target, source.marks, picked),
            nll=True,
            seen=source.seen,
            held=source.held,
            roots=source.roots,
            targets=targets if target.pos is None else 0,
            scores=frozenset({number}) | source.scores,
            marks=(target.marks - {"val", "numpy", "mixed", "hashed"})
            | (source.marks & {"train", *(("prob",) if picked else ())})
            | ({"nll"} if target.pos is not None else {"nll", "guess"}),
            key=source.key,
        )
        if target.pos is None and out.held:
            self.held_state(out, targets, node)
        return out

    def forward(
        self,
        module: Module,
        args: list[Any],
        named: dict[str, Any],
        node: ast.AST,
        method: Function | None = None,
    ) -> Any:
        """A model's output: logits of its tokens, or the loss of its targets where those are given
        too, one number or one a token as `method` says.
        """
        if method is not None and self.learning(method):
            return self.call_function(method, [module, *args], named, node)
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
            self.trace.calls.append(
                CallEvent(
                    name="calibration",
                    where=self.where(node),
                    certain=self.uncertain <= 0,
                    order=self.order,
                )
            )
        if len(tokens) >= 2 and (target := _shifted(tokens)) is not None:
            out = self.score(source, target, node)
            why = self.observe(method, module, args, named, node) if method is not None else ""
            if why:
                self.warp(out, why)
            if method is None or _per_token(method.node):
                return out
            self.added_up(out, node)
            return reduced(out, np.mean)
        self.interest += 1
        source.shape = None
        source.marks = (source.marks - {"val", "numpy", "index"}) | {"logits"}
        return source

    def call_function(
        self, function: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        raise NotImplementedError

    def learning(self, function: Function) -> bool:
        raise NotImplementedError

    def observe(
        self,
        method: Function,
        module: Module,
        args: list[Any],
        named: dict[str, Any],
        node: ast.AST,
    ) -> str:
        raise NotImplementedError

    def tensor_call(
        self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST, method: bool
    ) -> Any:
        """The result of an operation by its last name; NotImplemented when it is none of ours."""
        out = self.operation(name, args, named, node, method)
        first = args[0] if args else None
        if isinstance(first, Box) and first.scores and name not in _LOSSES:
            for box in collect(out):
                if name in _PICKS:
                    self.warp(box, f"scores are picked by {name}")
                self.lost(box, first, name)
        return out

    def operation(
        self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST, method: bool
    ) -> Any:
        if name in _LOSSES:
            return self.loss(args, named, node)
        if not method and (name in CREATE or name in LIKE):
            return self.make(name, args, named)
        if method and name in CREATE and name.startswith("new_"):
            return self.make(name, args[1:], named)
        if method and name in LIKE:
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
            out = elementwise(self.frozen([first]), _ONE[name])
            if name == "exp" and (first.nll or "logprob" in first.marks):
                out.marks = out.marks - {"logprob"} | {"prob"}
            elif name.startswith("log") and "prob" in first.marks:
                out.marks = out.marks - {"prob"} | {"logprob"}
            elif first.nll and name in {"sqrt", "square", "sign", "floor", "round"}:
                self.warp(out, f"scores go through {name}")
            return out
        if name in _TWO and len(args) > 1:
            return self.two(name, first, known(args[1]), node)
        return self.reshaping(name, first, args, named)

    def two(self, name: str, first: Box, second: Box, node: ast.AST) -> Box:
        a, b = self.frozen([first, second])
        if name in _OPERATORS:
            return self.binary(_OPERATORS[name](), a, b, node)  # type: ignore[no-any-return]
        out = elementwise([a, b], _TWO[name])
        if name == "logaddexp":
            self.mixture(a, b, out)
            self.mixture(b, a, out)
        if name in {"maximum", "minimum"}:
            self.bounded(name, a, b, out)
        if name in {"pow", "power"} and a.nll:
            self.warp(out, "scores are raised to a power")
        if name in {"eq", "ne", "lt", "le", "gt", "ge"}:
            out.nll, out.marks = (
                False,
                out.marks | {"index"} | ({"tested"} if out.scores else set()),
            )
        self.check_report(a, b, out)
        return out

    def bounded(self, name: str, a: Box, b: Box, out: Box) -> None:
        """The smaller or larger of two: of scores, or of a score and a bound."""
        if self.chosen([a, b]):
            self.warp(out, "the better of several scores is taken")
            return
        for score, other in ((a, b), (b, a)):
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
        out.live, out.table = first.live, first.table
        if name in {"softmax", "log_softmax", "sigmoid"}:
            out.marks = out.marks - {"prob", "logprob"}
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
        if name in {"max", "min"} and len(args) > 1 and isinstance(args[1], Box):
            return elementwise(
                self.frozen([first, args[1]]), np.maximum if name == "max" else np.minimum
            )
        if name in {"max", "min"} and self.chosen([box]) and axis is not None:
            self.warp(box, "the better of several scores is taken")
        if name in {"sum", "mean", "nansum", "average", "nanmean"}:
            self.added_up(box, None)
        if is_token(box) and not box.nll:
            box = snapshot(box, held=box.held | depends(box))
        if name == "sum" and box.val is None and box.shape is None and _is_mask(box):
            return snapshot(reduced(box), val=np.asarray(1.0))
        if axis is None or (box.shape is not None and len(box.shape) == 1):
            return reduced(box, _REDUCE[name])
        if isinstance(axis, int) and box.pos is not None and not box.nll:
            keep = bool(named.get("keepdim", named.get("keepdims", False)))
            out = shaped(snapshot(box, val=None), lambda a: a.max(axis=axis, keepdims=keep))
            return (out, Box()) if name in {"max", "min"} and "numpy" not in box.marks else out
        out = merge([box], nll=False)
        out.key = box.key
        if name == "logsumexp":
            out.marks |= {"lse"}
        if box.nll and box.val is not None and isinstance(axis, int):
            out.val = np.asarray(_REDUCE[name](box.val, axis=axis))
            out.shape, out.nll = out.val.shape, box.nll
        return out

    def clamped(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Box:
        """Values held between bounds."""
        if name == "clamp_max":
            named = {"max": args[1]} if len(args) > 1 else named
        rest = args[1:] if name != "clamp_max" else []
        out = snapshot(self.frozen([first])[0], val=self.clipped(first, rest, named))
        low = named.get("min", named.get("a_min", rest[0] if rest else None))
        high = named.get("max", named.get("a_max", rest[1] if len(rest) > 1 else None))
        self.capped(out if out.val is not None else snapshot(first), low, high)
        if first.nll and out.val is None:
            self.capped(out, low, high)
        return out

    def loss(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """Cross-entropy: its second tensor is the target, and `reduction` says whether one number
        comes out.
        """
        boxes = [known(a) for a in args if isinstance(a, (Box, list))]
        target = named.get("target", named.get("targets", named.get("labels")))
        if target is None and len(boxes) > 1:
            target = boxes[1]
        if not boxes or not isinstance(target, Box):
            target = next((b for b in boxes[1:] if is_token(b)), Box())
        source = merge(self.frozen(boxes[:1]))
        source.pos = boxes[0].pos if boxes else None
        out = self.score(source, target, node)
        how = named.get("reduction")
        if how == "none":
            return out
        self.added_up(out, node)
        return reduced(out, np.sum if how == "sum" else np.mean)

    def in_place(
        self, name: str, first: Box, rest: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Box:
        if name == "clamp_" and not first.live:
            first.val = self.clipped(first, rest, named)
            return first
        if first.live:
            if name in _RESET:
                self.reset_leaves(first.roots)
            else:
                self.update_param(
                    first,
                    [b for a in rest for b in collect(a)],
                    node,
                    replace=name in {"copy_", "set_"},
                )
            return first
        sources = self.frozen([b for a in rest for b in collect(a)])
        if name in _KEYED and any(is_token(b) for b in sources):
            if name == "scatter_" and self.row_aligned(first, sources):
                return first
            first.table |= 1
            first.val = None
            first.held |= self.written(sources)
            return first
        if name in _RESET:
            first.held = 0
            first.val = (
                np.zeros_like(first.val) if name == "zero_" and first.val is not None else None
            )
            first.pos = first.key = None
            return first
        mixed = (
            elementwise([self.frozen([first])[0], *sources])
            if name != "copy_"
            else (sources or [Box()])[0]
        )
        if name == "masked_fill_" and sources:
            return masked(
                first, Box(val=None if sources[0].val is None else ~sources[0].val.astype(bool))
            )
        if name == "add_":
            for source in sources:
                self.added_up(source, node)
        self.check_report(first, merge(sources), mixed)
        if name == "mul_" and sources and mixed.nll:
            mixed = masked(mixed, sources[0])
        for field in (
            "pos",
            "key",
            "deps",
            "targets",
            "seen",
            "held",
            "roots",
            "scores",
            "marks",
            "nll",
        ):
            setattr(first, field, getattr(mixed, field))
        action = {"add_": np.add, "sub_": np.subtract, "mul_": np.multiply, "div_": np.true_divide}
        if name in action and sources and not named:
            known_both = elementwise([first, sources[0]], action[name]).val
            mixed.val = known_both
        first.val = mixed.val if name == "copy_" or (name in action and not named) else None
        return first

    def row_aligned(self, first: Box, sources: list[Box]) -> bool:
        """Whether a write puts one entry, known by its position, into each row of a fresh array;
        the array then remembers that position row by row.
        """
        key = next((s for s in sources if is_token(s)), None)
        shape = first.shape
        if first.table or key is None or key.pos is None or key.held or not shape:
            return False
        rows = key.pos.max(axis=-1) if key.pos.ndim == len(shape) else key.pos
        sizes = tuple(int(s or 0) for s in shape)
        if None in shape or rows.shape != sizes[:-1] or rows.size * sizes[-1] > _MOST_ROWS:
            return False
        first.pos = np.broadcast_to(rows[..., None], sizes)
        first.val = None
        return True

    def reset_leaves(self, roots: frozenset[int]) -> None:
        """A fresh start: what these leaves had learnt is overwritten (a module's only if it is an
        adapter).
        """
        for root in roots:
            if self.leaves[root].kind != "module" or "adapter" in self.leaves[root].marks:
                self.leaves[root].seen = 0


def _loss(target: Box, marks: frozenset[str], picked: bool) -> Array | None:
    """The witness of a score: a loss, a log-probability or a probability."""
    content = witness(target.pos)
    if content is None or not picked:
        return content
    return np.exp(-content) if "prob" in marks else -content


def _is_mask(box: Box) -> bool:
    """Whether an unknown value weighs tokens: it is no score and no model made it."""
    return not box.scores and not box.roots and "train" not in box.marks


def _per_token(function: ast.AST) -> bool:
    """Whether a model's method gives the loss of each token, as far as its own text tells."""
    losses = [
        n
        for n in ast.walk(function)
        if isinstance(n, ast.Call)
        and _LOSSES & {getattr(n.func, "attr", ""), getattr(n.func, "id", "")}
    ]
    return not losses or any(
        k.arg == "reduction" and not (isinstance(k.value, ast.Constant) and k.value.value != "none")
        for n in losses
        for k in n.keywords
    )


def _shifted(tokens: list[Box]) -> Box | None:
    """Of a model's token arguments, the one that lies one position after another: its targets."""
    for i, later in enumerate(tokens):
        for j, earlier in enumerate(tokens):
            if (
                i == j
                or later.pos is None
                or earlier.pos is None
                or later.pos.shape != earlier.pos.shape
            ):
                continue
            both = (later.pos >= 0) & (earlier.pos >= 0)
            if both.any() and ((later.pos - earlier.pos)[both] == 1).mean() > 0.5:
                return later
    if tokens[1].pos is None or tokens[0].pos is None:
        return tokens[1] if depends(tokens[1]) or target_bits(tokens[1]) else None
    return None


__all__ = ["Function", "Tensors"]
