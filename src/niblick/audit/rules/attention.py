"""Attention of the positions of a window to all of its positions (C1): by a call that is told no
mask and no order, or as a softmax of products that nothing was masked in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case
from niblick.audit.rules.look_ahead import (
    called_on,
    derived,
    inputs_of,
    names_of,
    statements,
    suspicion,
)
from niblick.audit.rules.masks import shows_later
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.rules.window import MERGED, Window, arguments, axis_of, plain
from niblick.audit.types import Finding
from niblick.audit.words import words

_ORDERED = {
    "scaled_dot_product_attention": (words("attn_mask is_causal mask"), 3),
    "flash_attn_func": (words("causal window_size"), 5),
    "flash_attn_3_func": (words("causal window_size"), 5),
    "flex_attention": (words("score_mod block_mask"), 3),
}
"""What says which keys a query may see, and the first place of such an argument."""
_PRODUCTS = words("matmul bmm einsum")
_KEEP = words("to float double half bfloat16 type_as contiguous")
_ELSEWHERE = words("cat concat gather index_select")
_WHAT = "lets each position attend to all positions of a window"


@rule("unmasked-attention")
def check(case: Case) -> list[Finding]:
    """One suspicion for the first model that is made and attends without a mask."""
    called = called_on(case)
    made = {name.rpartition(".")[2] for name, _ in case.program.calls()}
    for model in case.nodes:
        if isinstance(model, ast.ClassDef) and model.name in made:
            reach = Reach(case, model)
            for method, inputs in inputs_of(model, reach, called).items():
                node = next(_unmasked(case, method, inputs, reach), None)
                if node is not None:
                    return [suspicion(case, f"{model.name}.{method.name}", _WHAT, node)]
    return []


def _unmasked(
    case: Case, method: ast.FunctionDef, inputs: set[str], reach: Reach
) -> Iterator[ast.AST]:
    """Where queries and keys of the very same input meet, and nothing keeps later keys out."""
    meeting = Meeting(derived(method, inputs), [derived(method, {name}) for name in inputs])
    local: dict[str, ast.expr] = {}
    for statement in statements(method.body, reach):
        for node in ast.walk(statement):
            if not isinstance(node, ast.Call):
                continue
            pair = _queries_and_keys(node, case.program.full_name(node.func), local)
            soft = name_of(node.func) == "softmax" and plain(axis_of(node)) == -1
            if meeting.same(pair) or (soft and meeting.products(arguments(node)[0])):
                yield node
        meeting.follow(statement)
        if isinstance(statement, ast.Assign):
            local |= {n: statement.value for t in statement.targets for n in names_of(t)}


def _queries_and_keys(call: ast.Call, name: str, local: dict[str, ast.expr]) -> list[ast.expr]:
    """The queries and keys of a call of attention that is told nothing of their order, or a mask
    that lets later keys be seen.
    """
    told, place = _ORDERED.get(name.rpartition(".")[2], (frozenset[str](), 0))
    orders = [*call.args[place:], *(k.value for k in call.keywords if k.arg in told or not k.arg)]
    told_of = [o for o in orders if not (isinstance(o, ast.Constant) and not o.value)]
    open_to = len(told_of) == 1 and shows_later(told_of[0], local)
    return call.args[:2] if place and (not told_of or open_to) else []


class Meeting(Window):
    """The names of one method, and which of them are products of queries and keys that `sources`,
    each what comes of one input, have in common.
    """

    def __init__(self, own: set[str], sources: list[set[str]]) -> None:
        super().__init__(own, {})
        self.sources = sources
        self.scores: set[str] = set()

    def follow(self, node: ast.stmt) -> None:
        """Takes note of a statement: what is not a plain product of two is none."""
        held = isinstance(node, ast.Assign) and self.products(node.value)
        scaled = isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Mult, ast.Div))
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        self.scores = self.scores if scaled else self.scores - names
        if isinstance(node, ast.Assign) and held:
            self.scores |= {n for target in node.targets for n in names_of(target)}
        self.assign(node)

    def same(self, pair: list[ast.expr]) -> bool:
        """Whether two values are positions of one window, of one input, none of them from elsewhere
        as from a cache.
        """
        if len(pair) != 2:
            return False
        queries, keys = (self.parts(part) for part in pair)
        other = MERGED in queries | keys or keys & _ELSEWHERE - queries
        names = [names_of(part) for part in pair]
        return not other and any(all(n & source for n in names) for source in self.sources)

    def products(self, node: ast.expr) -> bool:
        """Whether a value is products of queries and keys, scaled at most."""
        if isinstance(node, ast.Name):
            return node.id in self.scores
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
            sides = [node.left, node.right]
            other = [side for side in sides if not self.products(side)]
            return len(other) == 1 and not names_of(other[0]) & self.own
        if isinstance(node, ast.BinOp):
            return isinstance(node.op, ast.MatMult) and self.same([node.left, node.right])
        if not isinstance(node, ast.Call):
            return False
        if name_of(node.func) in _KEEP:
            return self.products(arguments(node)[0])
        return name_of(node.func) in _PRODUCTS and self.same(arguments(node)[-2:])
