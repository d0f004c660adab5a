"""Scores: losses and log-probabilities, and the models that they are taken from."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    BOS,
    NO_MARKS,
    Array,
    Box,
    collect,
    depends,
    is_token,
    known,
    merge,
    reduced,
    snapshot,
    target_bits,
    witness,
)
from niblick.audit.flow.figures import DOUBT, INSIDE, LOGIT, LOST, PICKED
from niblick.audit.flow.methods import called
from niblick.audit.flow.narrowing import ALTERED, FED, MOVED
from niblick.audit.flow.objects import Function, Module, ScoreEvent
from niblick.audit.flow.shapes import Shapes
from niblick.audit.flow.statistics import LIBRARY, Keeps, kept_by
from niblick.audit.reads import name_of
from niblick.audit.words import words

_LOSSES = words(
    "cross_entropy nll_loss fused_cross_entropy linear_cross_entropy CrossEntropyLoss NLLLoss"
)
_IGNORED = -100
"""The target that PyTorch's losses leave out by default."""
_REMEMBERED = 256  # forwards
_OF_DISTRIBUTION, _RAW = frozenset({"prob", "logprob", "lse"}), frozenset({LOGIT})
_OTHERS = "the making of its targets, which may be other tokens than those that are counted"

_HANDED = "a model that was given the very tokens that it is scored on, unless it shifts them"
_MOVED = "what a model made of tokens, rolled or flipped outside of it"
ONE_HOT = "one hot"
"""The mark of tokens as rows of noughts and a one, and of scores that lie in such rows."""


class Scoring(Shapes):
    """Where scores are made."""

    def score(self, source: Box, target: Box, node: ast.AST | None, picked: bool = False) -> Box:
        """The loss of `target` under what `source` was computed from, or, where it is `picked` out
        of a distribution, its log-probability or probability.
        """
        source = self.frozen([source])[0]
        targets = depends(target)
        self.check_answer(source, target, node)
        self.interest += 1
        kinds = frozenset(
            self.leaves[r].kind
            for r in source.roots
            if self.leaves[r].seen or self.leaves[r].kind == "module"
        ) | self.fitted(source, targets)
        self.order += 1
        number = len(self.trace.scores) + 1
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
            | (_RAW if picked and not source.marks & _OF_DISTRIBUTION else NO_MARKS)
            | ({"nll"} if target.pos is not None else {"nll", "guess"}),
            key=source.key,
            rows=target.rows,
        )
        for what, doubtful in (
            (_OTHERS, ALTERED in target.marks),
            (_HANDED, self.reads_answers(source, target)),
            (_MOVED, MOVED in source.marks),
        ):
            out = self.doubted(out, what) if doubtful else out
        if target.pos is None and out.held:
            self.held_state(out, targets, node)
        return out

    def doubted(self, out: Box, what: str) -> Box:
        """Scores of which nobody knows what they are."""
        out.val, out.marks = None, out.marks | {f"{LOST}{what} ({self.spot()})"}
        return out

    def origin(self, given: list[Box]) -> frozenset[str]:
        """The marks of what a model, or a part of one, makes of `given`: which tokens it has read.
        Those of the newest calls are remembered.
        """
        marks = {m for b in given for m in b.marks if m == MOVED or m.startswith(FED)}
        tokens = [b for b in given if is_token(b) and b.marks.isdisjoint({"index", "bytes"})]
        if len(tokens) == 1 and tokens[0].pos is not None:
            marks.add(self.remembered(tokens[0].pos))
        return frozenset(marks)

    def remembered(self, places: Array) -> str:
        """The mark of what was made of the tokens at these places."""
        self.forwards += 1
        mark = f"{FED}{self.forwards}"
        self.fed[mark] = places
        self.fed.pop(f"{FED}{self.forwards - _REMEMBERED}", None)
        return mark

    def item(self, holder: Any, key: Any, node: ast.AST) -> Any:
        found = super().item(holder, key, node)
        made = [m for m in holder.marks if m in self.fed] if isinstance(holder, Box) else []
        if not made or not isinstance(found, Box) or found.live:
            return found
        marks = found.marks
        for mark in made:
            places = self.fed[mark]
            cut = key[: places.ndim] if isinstance(key, tuple) else (key,)
            if all(_is_plain(each) for each in cut) and (left := places[cut]).size:
                marks = marks - {mark} | {self.remembered(left)}
        return snapshot(found, marks=marks)

    def reads_answers(self, source: Box, target: Box) -> bool:
        """Whether a model's output is scored on tokens at or before those it was given, place by
        place: it has read them, unless it shifts them itself.
        """
        wanted = target.pos
        if wanted is None:
            return False
        for mark in source.marks:
            fed = self.fed.get(mark)
            if fed is not None and fed.size == wanted.size:
                made, own = fed.reshape(-1), wanted.reshape(-1)
                if ((made >= own) & (own >= 0)).mean() > 0.5:
                    return True
        return False

    def fitted(self, source: Box, targets: int) -> frozenset[str]:
        """Whether a setting that was kept for the scores of tokens, or weights that are no model's
        but were made of their gradients, take part in scoring them again: a tensor fitted to them.
        """
        lines = [m.removeprefix(PICKED) for m in source.marks if m.startswith(PICKED)]
        both = source.seen & targets
        if "grad" in source.marks and not any(u.positions & both for u in self.trace.updates):
            lines.append(str(self.line))
        if not lines or not both:
            return NO_MARKS
        root = frozenset({self.new_leaf("setting", "setting")})
        self.record_update(root, both, ast.Pass(lineno=int(lines[0])), NO_MARKS)
        return frozenset({"setting"})

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
        if method is not None and not boxes:
            return self.param_box(frozenset(leaves))  # parts of the model, as they will be
        source = merge(boxes, roots=frozenset(leaves).union(*[b.roots for b in boxes]))
        for leaf in leaves:
            source.seen |= self.leaves[leaf].seen
        source.targets = 0
        source.nll = False
        tokens = [b for b in boxes if is_token(b) and b.marks.isdisjoint({"index", "bytes"})]
        self.hooked = self.hooked or self.hooks > 0
        if self.hooks and any(depends(b) for b in tokens):
            self.calls_out("calibration", node, "parts" if self.parts_hooked else "")
            source.marks |= {f"hooked:{self.order}"}
            self.look_on(module, self.order, node)
        self.gather_statistics(module, tokens, node)
        source.marks |= self.origin(tokens)
        if len(tokens) >= 2 and (target := _shifted(tokens)) is not None:
            if method is None:
                return self.score(source, target, node)
            seen = self.observe(method, module, args, named, node)
            if seen.parts > 1:
                return self.call_function(method, [module, *args], named, node)
            if seen.each:
                return tuple(
                    self.predicted(source)
                    if one.parts
                    else self.observed_loss(source, target, method, one, node)
                    for one in seen.each
                )
            if not seen.parts:
                return self.observed_loss(source, target, method, seen, node)
        return self.predicted(source)

    def gather_statistics(self, module: Module, tokens: list[Box], node: ast.AST) -> None:
        """A model keeps running statistics of what it is given, if it has layers that do: those of
        the library where it is told to train; with gradients it is trained anyway.
        """
        positions = merge(tokens).deps
        if not positions or not self.no_grad:
            return
        owners = [f.owner.node for f in self.methods.get("__init__", []) if f.owner is not None]
        kinds = {self.statistics_of(node) for node in owners}
        told = Keeps.IN_TRAINING in kinds and module.attrs.get("training") is True
        if told or kinds & {Keeps.ALWAYS, Keeps.PERHAPS}:
            doubt = not told and Keeps.ALWAYS not in kinds
            self.uncertain += doubt
            self.leaves[module.leaf].seen |= positions
            self.record_update(frozenset({module.leaf}), positions, node, frozenset())
            self.uncertain -= doubt

    def statistics_of(self, node: ast.AST) -> Keeps | None:
        """When the layers that a class makes, or is, gather statistics."""
        if id(node) not in self.keeping:
            own = kept_by(node) if isinstance(node, ast.ClassDef) else None
            made = any(name_of(call.func) in LIBRARY for call in called(node))
            self.keeping[id(node)] = own or (Keeps.IN_TRAINING if made else None)
        return self.keeping[id(node)]

    def predicted(self, source: Box) -> Box:
        """What a model makes of tokens, of which no score has been taken."""
        self.interest += 1
        marks = (source.marks - {"val", "numpy", "index"}) | {"logits"}
        return snapshot(source, shape=None, marks=marks)

    def picked_out(self, a: Box, b: Box, node: ast.AST) -> Box | None:
        """What a model gives for each token times rows of which only the token's own is not nought:
        its score, along the alphabet's axis, of which the sum is to come.
        """
        for hot, values in ((a, b), (b, a)):
            if ONE_HOT in hot.marks and values.roots and not values.nll:
                target = snapshot(hot, marks=hot.marks - {ONE_HOT})
                out = self.score(values, target, node, picked=True)
                out.val = None if out.val is None or hot.val is None else out.val * hot.val
                out.marks |= {ONE_HOT}
                return out
        return None

    def observed_loss(
        self, source: Box, target: Box, method: Function, seen: Any, node: ast.AST
    ) -> Box:
        """A loss that a method of a model returns, as a look into it has shown it."""
        out = self.score(source, target, node)
        if seen.why:
            doubt = DOUBT if seen.why.startswith(DOUBT) else ""
            self.warp(out, f"{doubt}{INSIDE}{seen.why.removeprefix(DOUBT)}")
        elif seen.lost:
            out.val, out.marks = None, out.marks | {f"{LOST}{INSIDE}{seen.lost}"}
        if seen.single is False or (seen.single is None and _per_token(method.node)):
            return out
        return reduced(self.added_up(out, node), _mean_of(target, _IGNORED))

    def loss(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """Cross-entropy: its second tensor is the target, and `reduction` says whether one number
        comes out. Smoothing it over other tokens only makes it larger.
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
        if boxes and boxes[0].nll and target_bits(boxes[0]) == target_bits(out):
            self.warp(out, "a model is given the very tokens that its output is scored on")
        weight = named.get("weight")
        if isinstance(weight, Box) and not weight.options and weight.shape != ():
            if weight.val is None:
                self.doubted(out, "weights of tokens")
            elif np.ptp(weight.val):
                self.warp(out, "losses are weighed by their tokens")
        how = named.get("reduction")
        ignored = named.get("ignore_index", _IGNORED)
        if isinstance(ignored, int) and ignored > BOS and is_token(target):
            left = f"losses of token {ignored} are left out"
            out = self.warp(out, left) if _among(ignored, target) else self.doubted(out, left)
        if how == "none":
            return out
        mean = _mean_of(target, ignored)
        return reduced(self.added_up(out, node), np.sum if how == "sum" else mean)


def _is_plain(key: Any) -> bool:
    """Whether a subscript is a slice between known numbers."""
    ends = (key.start, key.stop, key.step) if isinstance(key, slice) else ("",)
    return all(end is None or isinstance(end, int) for end in ends)


def _loss(target: Box, marks: frozenset[str], picked: bool) -> Array | None:
    """The witness of a score: a loss, a log-probability or a probability."""
    content = witness(target.pos)
    if content is None or not picked:
        return content
    return np.exp(-content) if "prob" in marks else -content


def _mean_of(target: Box, ignored: Any) -> Callable[[Array], Any]:
    """The mean of losses as cross-entropy takes it: of those whose target is not to be ignored."""
    if target.val is None or not isinstance(ignored, int) or target.pos is None:
        return np.mean
    counted = int((target.val != ignored).sum())
    return (lambda losses: losses.sum() / counted) if counted else np.mean


def _among(token: int, target: Box) -> bool:
    """Whether a token of the stream is among targets, as far as these are known."""
    if target.val is None or target.pos is None or target.val.shape != target.pos.shape:
        return False
    return bool(((target.val == token) & (target.pos >= 0)).any())


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
