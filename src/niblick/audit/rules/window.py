"""What the operations of a model do with a window: which reach along all of its positions.

Axes are those of a batch of windows (windows, positions, features), as models of the challenge are
given them; what has been given another shape is not judged.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from niblick.audit.reads import name_of, names_in
from niblick.audit.words import words

POSITIONS = 1
"""The axis that runs along the positions."""
LAST, BOTH, NORM, WEIGHTS = "last", "both", "norm", "weights"
"""Layers that mix along the last axis of what they are given, those that go along the positions
both ways, those that norm over all axes from the second on, and plain weights of two axes.
"""
_NORMS = words("GroupNorm InstanceNorm1d InstanceNorm2d group_norm instance_norm")
_MODULES = words("torch F functional nn mx jnp np fft linalg special")
_FOURIER = words("fft ifft rfft hfft")
_AXIS_AT = {
    **dict.fromkeys(("softmax", "sort", "argsort", "argmax", "argmin"), 1),
    **dict.fromkeys(("normalize", "topk", "kthvalue", "quantile", *_FOURIER), 2),
}
_SWAPS: tuple[tuple[object, ...], ...] = ((1, 2), (2, 1), (-1, -2), (-2, -1))
_TURNS = {"transpose": _SWAPS, "swapaxes": _SWAPS, "permute": ((0, 2, 1),)}
_RESHAPES = words("view reshape unflatten rearrange flatten unsqueeze squeeze unfold stack einsum")
_SQUEEZES = words("squeeze unsqueeze")
_DIM = words("dim axis")
MERGED = "*"
"""Stands among the names of what was reshaped so that its first axis is not that of windows."""


def arguments(call: ast.Call) -> list[ast.expr]:
    """The arguments of a call, what a method is of among them."""
    args = list(call.args)
    if isinstance(call.func, ast.Attribute) and name_of(call.func.value) not in _MODULES:
        args.insert(0, call.func.value)
    return args


def given(call: ast.Call, names: frozenset[str], place: int) -> ast.expr | None:
    """An argument of a call by one of its names, or by its place."""
    named = next((k.value for k in call.keywords if k.arg in names), None)
    args = arguments(call)
    return named if named is not None else args[place] if len(args) > place else None


def axis_of(call: ast.Call, place: int = 1) -> ast.expr | None:
    """The argument that says along which axis an operation goes."""
    return given(call, _DIM, place)


def plain(node: ast.expr | None) -> object:
    """What a literal stands for; None for anything else."""
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def along_positions(call: ast.Call) -> bool:
    """Whether each position of what a call gives is made of all that it is given: a softmax, a norm
    or a Fourier transform along them, their order, or a norm over all axes but the first.
    """
    name = name_of(call.func)
    if name == "layer_norm":
        sizes = given(call, words("normalized_shape"), 1)
        part = sizes.slice if isinstance(sizes, ast.Subscript) else None
        return isinstance(part, ast.Slice) and plain(part.lower) == POSITIONS and not part.upper
    padded = name in _FOURIER and given(call, words("n"), 1) is not None
    return name in _AXIS_AT and plain(axis_of(call, _AXIS_AT[name])) == POSITIONS and not padded


def layers(init: Iterable[ast.stmt], linear: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(attribute, kind) of the layers and weights that a constructor makes; `linear` are the names
    of the classes that mix along the last axis.
    """
    for node in init:
        target, value = (
            (node.targets[0], node.value) if isinstance(node, ast.Assign) else (None, None)
        )
        if not isinstance(target, ast.Attribute) or not isinstance(value, ast.Call):
            continue
        name, made = target.attr, name_of(value.func)
        content = value.args[0] if value.args else None
        if any(k.arg == "bidirectional" and plain(k.value) is True for k in value.keywords):
            yield name, BOTH
        elif made in _NORMS:
            yield name, NORM
        elif made in linear:
            yield name, LAST
        elif made == "Parameter" and isinstance(content, ast.Call) and len(content.args) == 2:
            yield name, WEIGHTS


class Window:
    """The names of one method, statement by statement: which are `turned` so that the positions
    come last, whose axes are otherwise `swapped`, which come of the `whole` window, and with what
    each was `made`.
    """

    def __init__(self, own: set[str], kinds: dict[str, str]) -> None:
        self.own, self.kinds = own, kinds
        self.turned: set[str] = set()
        self.swapped: set[str] = set()
        self.whole: set[str] = set()
        self.made: dict[str, set[str]] = {}

    def assign(self, node: ast.stmt) -> None:
        """Takes note of what an assignment gives to names."""
        if isinstance(node, ast.Assign):
            turned, made = self.is_turned(node.value), self.parts(node.value)
            swapped = self.is_swapped(node.value)
            stored = (n for target in node.targets for n in ast.walk(target))
            for name in (n.id for n in stored if isinstance(n, ast.Name)):
                self.turned = self.turned | {name} if turned else self.turned - {name}
                self.swapped = self.swapped | {name} if swapped else self.swapped - {name}
                self.made[name] = made

    def parts(self, node: ast.AST) -> set[str]:
        """The names in an expression, and those that these were made with."""
        names = names_in(node) | ({MERGED} if any(map(_merges, ast.walk(node))) else set())
        names -= _SQUEEZES - {name for name in _SQUEEZES if _moves_axes(node, name)}
        return names.union(*(self.made.get(name, set()) for name in names))

    def is_turned(self, node: ast.expr) -> bool:
        """Whether a value of windows has the positions for its last axis."""
        if isinstance(node, ast.Name):
            return node.id in self.turned
        if isinstance(node, ast.Attribute) and node.attr == "mT":
            return self.windows(node.value)
        if not isinstance(node, ast.Call) or name_of(node.func) not in _TURNS:
            return False
        value, *axes = arguments(node)
        return tuple(map(plain, axes)) in _TURNS[name_of(node.func)] and self.windows(value)

    def is_swapped(self, node: ast.AST) -> bool:
        """Whether a value's second and third axes have changed places, whatever its shape."""
        if isinstance(node, ast.Name):
            return node.id in self.swapped
        if isinstance(node, ast.BinOp):
            return self.is_swapped(node.left) or self.is_swapped(node.right)
        if not isinstance(node, ast.Call):
            return False
        name, given_to = name_of(node.func), arguments(node)
        if name in _TURNS and tuple(map(plain, given_to[1:])) in _TURNS[name]:
            return not self.is_swapped(given_to[0])
        if isinstance(node.func, ast.Attribute) and name_of(node.func.value) == "self":
            given_to = node.args
        return bool(given_to) and name not in _RESHAPES and self.is_swapped(given_to[0])

    def windows(self, node: ast.expr) -> bool:
        """Whether a value comes of a method's inputs, and has their axes as far as known."""
        parts = self.parts(node)
        return bool(parts & self.own) and not parts & (_RESHAPES | _TURNS.keys())

    def mixes(self, node: ast.AST) -> bool:
        """Whether an operation, a layer or plain weights make each position of all of them."""
        if isinstance(node, ast.Call) and along_positions(node):
            return self.windows(arguments(node)[0])
        if isinstance(node, ast.Call) and name_of(node.func) in _NORMS and arguments(node):
            return self._normed(arguments(node)[0])
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            kind = self.kinds.get(node.func.attr) if name_of(node.func.value) == "self" else None
            value = node.args[0]
            if kind == NORM:
                return self._normed(value)
            return self.is_turned(value) if kind == LAST else kind == BOTH and self.windows(value)
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.MatMult):
            return False
        left, right = node.left, node.right
        upright = isinstance(right, ast.Name) and right.id not in self.turned
        return (self._weights(left) and upright and self.windows(right)) or (
            self._weights(right) and self.is_turned(left)
        )

    def _normed(self, value: ast.expr) -> bool:
        """Whether a norm over all axes from the second on takes the positions in: they are the last
        of them once features have become the second.
        """
        return bool(self.parts(value) & self.own) and self.is_swapped(value)

    def _weights(self, node: ast.expr) -> bool:
        held = isinstance(node, ast.Attribute) and name_of(node.value) == "self"
        return held and self.kinds.get(name_of(node)) == WEIGHTS


def _moves_axes(node: ast.AST, name: str) -> bool:
    """Whether a squeeze of any but the last axis is part of an expression."""
    calls = (n for n in ast.walk(node) if isinstance(n, ast.Call) and name_of(n.func) == name)
    return any(plain(axis_of(call)) != -1 for call in calls)


def _merges(node: ast.AST) -> bool:
    """Whether windows and another axis become one."""
    if not isinstance(node, ast.Call) or name_of(node.func) not in {"view", "reshape"}:
        return False
    first = arguments(node)[1:2]
    return any(plain(s) == -1 or isinstance(s, ast.BinOp) for s in first)
