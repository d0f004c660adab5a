"""Program objects other than tensors, and the records a run of the engine leaves behind."""

from __future__ import annotations

import ast
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Template = tuple[tuple[str, frozenset[int], str], ...]
"""The values of a formatted text: the words before each, the scores in it, the text that it is."""


KNOWN: dict[str, Any] = {
    f"{module}.{name}": getattr(math, name)
    for module in ("math", "np", "numpy")
    for name in ("e", "pi", "inf")
}
KNOWN["torch.version.hip"] = None  # the challenge runs on CUDA


@dataclass(frozen=True)
class Dotted:
    """A module, class or function outside the program, known by its dotted name."""

    name: str


@dataclass(eq=False)
class Function:
    """A function of the program with the scopes it closes over, innermost first."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scopes: tuple[dict[str, Any], ...]
    name: str
    marks: frozenset[str] = frozenset()
    owner: Class | None = None


@dataclass(eq=False)
class Class:
    """A class of the program; `kind` is "module", "tables" (a module that only keeps some),
    "optimizer", "autograd", "dataclass" or "plain".
    """

    name: str
    bases: tuple[Any, ...]
    body: dict[str, Any]
    kind: str
    node: ast.ClassDef

    def find(self, name: str) -> Any:
        """A class attribute by method resolution over known bases; None if absent."""
        if name in self.body:
            return self.body[name]
        for base in self.bases:
            if isinstance(base, Class) and (found := base.find(name)) is not None:
                return found
        return None

    @property
    def is_row(self) -> bool:
        """Whether its objects are tuples with names."""
        return any(isinstance(b, Dotted) and b.name.endswith("NamedTuple") for b in self.bases)

    @cached_property
    def settings(self) -> dict[str, ast.expr]:
        """What the constructor, and nothing else of the class, keeps under names of its own."""
        init = self.find("__init__")
        if not isinstance(init, Function) or isinstance(init.node, ast.Lambda):
            return {}
        owner = init.owner.node if init.owner is not None else self.node
        parts = (part for cls in {self.node, owner} for part in ast.walk(cls))
        stored = Counter(
            part.attr
            for part in parts
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
        )
        return {
            node.targets[0].attr: node.value
            for node in init.node.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and stored[node.targets[0].attr] == 1
        }

    def holds(self, name: str) -> bool:
        """Whether the class or a known base has such an attribute, be it None."""
        return name in self.body or any(
            isinstance(base, Class) and base.holds(name) for base in self.bases
        )


@dataclass(eq=False)
class Instance:
    """An object of a program class; `leaf` is set for modules."""

    cls: Class
    attrs: dict[str, Any] = field(default_factory=dict)
    leaf: int = 0

    def shadow_parts(self) -> list[Any]:
        return list(self.attrs.values())[:40]


@dataclass(eq=False)
class Module:
    """A model: everything reachable from it shares one leaf; `settings` are the plain values that
    its constructor keeps.
    """

    name: str
    leaf: int
    cls: Class | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Optimizer:
    """An optimizer over leaves."""

    name: str
    roots: frozenset[int]


@dataclass(frozen=True)
class Bound:
    """A method bound to its object; `name` when the object is a library value."""

    holder: Any
    name: str
    function: Function | None = None


@dataclass
class Namespace:
    """An object with plain attributes: a program module, parsed arguments, a simple namespace."""

    attrs: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Where:
    """A place in the program: file, line and the function it is in."""

    file: str
    line: int
    function: str


@dataclass(kw_only=True)
class ScoreEvent:
    """Log-probabilities of `targets` were computed from leaves that had been trained on `seen`."""

    number: int
    order: int
    targets: int
    seen: int
    leaf_kinds: frozenset[str]
    where: Where
    no_grad: bool
    certain: bool
    widened: bool
    marks: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class UpdateEvent:
    """Leaves learnt from stream positions `positions`."""

    order: int
    positions: int
    leaf_kinds: frozenset[str]
    names: frozenset[str]
    where: Where
    certain: bool
    widened: bool
    marks: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class KeyEvent:
    """A probability was formed from a table read with a key that holds the token being scored."""

    order: int
    where: Where
    certain: bool
    reason: str


@dataclass(kw_only=True)
class HintEvent:
    """A value that is there or not depending on the token it is for; `used` once it met a score,
    `off` once silenced.
    """

    name: str
    where: Where
    certain: bool
    used: bool = False
    off: bool = False


@dataclass(kw_only=True)
class Summing:
    """What one place adds up: the positions of `each` score, all of them (`kept`), those that were
    added more than once of one score (`again`), and the numbers of its sums.
    """

    each: dict[int, int] = field(default_factory=dict)
    kept: int = 0
    again: int = 0
    sums: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class StateEvent:
    """Counted scores were computed with state other than weights that holds stream positions
    `held`; `positions` are those of them that are being scored.
    """

    order: int
    positions: int
    held: int
    where: Where
    certain: bool


@dataclass(frozen=True, kw_only=True)
class FigureEvent:
    """A figure was printed: whether its label says bits per byte, its content under the witness
    (None: unknown), how it was warped, which operations lost its content, and whether it is known,
    but no count of bytes took part in it.
    """

    named: bool
    content: float | None
    warps: tuple[str, ...]
    lost: tuple[str, ...]
    guessed: bool
    per_token: bool
    scores: frozenset[int]
    where: Where
    certain: bool


@dataclass(frozen=True, kw_only=True)
class ReplacedEvent:
    """A function of a library was replaced by something of the program's."""

    name: str
    where: Where
    followed: bool


@dataclass(kw_only=True)
class CallEvent:
    """A call to something outside the program that a rule may care about."""

    name: str
    where: Where
    certain: bool
    detail: str = ""
    order: int = 0


@dataclass
class Trace:
    """Everything one run of the engine saw; `sums` are the positions of each score that a sum took,
    `summing` the places that made them, `summed` the sums that went into a figure, `jumps` the
    number of sums before each place where turns or losses are left out by the engine, `vague` the
    sums that were made for items of which others may not be known, `counted` the
    scores of figures that count bytes, `trained` those that a gradient was taken of, `calibrated`
    the orders of forwards that weights were made of by way of hooks, `failures` (line, what)
    exceptions that nothing avoids, `printed` the values of a formatted text, each with the words
    before it, the scores in it and its own words where it is a known text, and the words at its
    end.
    """

    scores: list[ScoreEvent] = field(default_factory=list)
    updates: list[UpdateEvent] = field(default_factory=list)
    keys: list[KeyEvent] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    calls: list[CallEvent] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)
    counted: set[int] = field(default_factory=set)
    trained: set[int] = field(default_factory=set)
    hints: dict[str, HintEvent] = field(default_factory=dict)
    sums: list[dict[int, int]] = field(default_factory=list)
    summing: dict[Where, Summing] = field(default_factory=dict)
    summed: set[int] = field(default_factory=set)
    jumps: set[int] = field(default_factory=set)
    vague: set[int] = field(default_factory=set)
    states: list[StateEvent] = field(default_factory=list)
    skips: list[Where] = field(default_factory=list)
    figures: list[FigureEvent] = field(default_factory=list)
    formed: dict[int, Any] = field(default_factory=dict)
    replaced: list[ReplacedEvent] = field(default_factory=list)
    calibrated: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    printed: list[tuple[Template, str]] = field(default_factory=list)
    steps: int = 0
    complete: bool = True

    def kept(self, number: int) -> int:
        """The positions of a score that were added up, for a figure where that is known."""
        taken = [s for i, s in enumerate(self.sums) if number in s and i in self.summed]
        kept = 0
        for each in taken or [s for s in self.sums if number in s]:
            kept |= each[number]
        return kept

    def jump(self) -> None:
        """What is added up next does not follow what was added up before."""
        self.jumps.add(len(self.sums))

    def unsure(self, first: int) -> None:
        """What has been added up since some sum may not be all that there is."""
        self.vague.update(range(first, len(self.sums)))

    def summed_at(self, where: Where, number: int) -> None:
        """A place adds up scores, some of them perhaps once more."""
        place = self.summing.setdefault(where, Summing())
        place.sums.add(number)
        for score, kept in self.sums[number].items():
            before = place.each.get(score, 0)
            place.again, place.kept = place.again | (before & kept), place.kept | kept
            place.each[score] = before | kept
