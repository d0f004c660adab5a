"""Python's builtins over shadow values."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from functools import reduce
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from niblick.audit.flow.access_index import HEADER, OCTETS, RAW, octets_of
from niblick.audit.flow.boxes import Box, collect, elementwise, known, merge, reduced, snapshot
from niblick.audit.flow.figures import CONSTANT, PLAUSIBLE, WARP
from niblick.audit.flow.lengths import Length, Rank, RankText, length_of, smallest, steps
from niblick.audit.flow.methods import is_own
from niblick.audit.flow.objects import Bound, Class, Dotted, Function, Instance, Module, Namespace
from niblick.audit.flow.records import Records
from niblick.audit.flow.signals import AbortSignal
from niblick.audit.flow.trials import BEST, picked, throughout
from niblick.audit.reads import name_of
from niblick.audit.words import words

_MAX_TEXT = 200_000
_MOST_RANKED = 16
_FEW = 3

_NAMES = words("int float str bool abs round divmod ord chr pow bytes hex bin repr")
_PURE: dict[str, Callable[..., Any]] = {
    **{name: getattr(builtins, name) for name in _NAMES},
    "hash": lambda v: hash(str(v)) % 2**31,
}


class Builtins(Records):
    """Builtin functions; each returns NotImplemented when it does not know the name."""

    def builtin(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """A Python builtin; NotImplemented when it is not one we know."""
        handler = getattr(self, f"py_{name}", None)
        if handler is not None:
            return handler(args, named, node)
        if name in {"bytes", "bytearray", "memoryview"} and args and isinstance(args[0], Box):
            return args[0]
        if name in _PURE:
            return self.pure(name, args, named)
        if name in {"list", "tuple", "set", "sorted", "reversed", "iter", "frozenset"}:
            out = self.sequence(name, args)
            if name == "sorted" and named.get("key") is not None and out:
                out[0] = self.ranked(out, named["key"], node)
            return out
        return NotImplemented

    def pure(self, name: str, args: list[Any], named: dict[str, Any]) -> Any:
        if name == "int" and args and isinstance(args[0], (Length, Rank)):
            return args[0]
        if name == "int" and args and isinstance(args[0], RankText):
            return Rank(args[0])
        if args and isinstance(args[0], Box):
            box = self.frozen([args[0]])[0]
            plain = (
                box.val is not None
                and box.val.size == 1
                and box.pos is None
                and not (box.roots or box.deps or box.held or box.scores or box.key is not None)
                and not box.marks & {"bytes", "guess"}
            )
            if name in {"int", "float", "bool"} and plain and box.val is not None:
                try:
                    return _PURE[name](box.val.reshape(-1)[0].item())
                except (ValueError, OverflowError):
                    return Box(shape=())
            if name == "str":
                return "?"
            return self.scalar(box)
        if any(
            not isinstance(
                a, (int, float, str, bytes, bool, list, tuple, PurePosixPath, np.generic)
            )
            for a in args
        ):
            return "?" if name in {"str", "repr"} else merge(collect(args), shape=())
        try:
            return _PURE[name](*args, **named)
        except ValueError as error:
            if (
                name in {"int", "float"}
                and len(args) == 1
                and isinstance(args[0], str)
                and "?" not in args[0]
            ):
                self.fails(f"ValueError: {error}")
            return Box(shape=())
        except (TypeError, OverflowError, MemoryError):
            return Box(shape=())

    def sequence(self, name: str, args: list[Any]) -> Any:
        if not args:
            return set() if name in {"set", "frozenset"} else () if name == "tuple" else []
        items = self.iterate(args[0], None)
        if name == "reversed":
            return items[::-1]
        if name in {"set", "frozenset"}:
            plain = all(isinstance(i, (int, str, float, tuple)) and not collect(i) for i in items)
            made = set(items) if plain else items
            self.keep(made, items)
            return made
        if name == "sorted":
            try:
                return sorted(items)
            except TypeError:
                return items
        return tuple(items) if name == "tuple" else items

    def py_range(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        sizes: list[int] = []
        for arg in args:
            told = isinstance(arg, Box) and "guess" not in arg.marks
            if told and arg.val is not None and arg.val.size == 1:
                arg = int(arg.val.reshape(-1)[0])
            if not isinstance(arg, (int, np.integer)):
                return range(2) if len(args) < 3 else [Box(shape=())]
            sizes.append(arg if isinstance(arg, int) else int(arg))
        first, *more = sizes
        ends = (first, *more) if more else (0, first)
        return steps(ends[0], ends[1], (*ends, 1)[2]) if len(sizes) < 3 or sizes[2] else []

    def py_len(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        value = args[0] if args else []
        if isinstance(value, (list, tuple, dict, str, bytes, set, range)):
            return len(value)
        if isinstance(value, Box) and OCTETS in value.marks and value.pos is not None:
            return octets_of(value)
        if isinstance(value, Box) and value.shape and value.shape[0] is not None:
            if RAW in value.marks:
                return HEADER + 2 * value.shape[0]
            return length_of(value, value.shape[0])
        if isinstance(value, Instance) and isinstance(
            method := value.cls.find("__len__"), Function
        ):
            return self.call_function(method, [value], {}, node)
        return merge(collect(value), shape=())

    def py_print(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        for at, value in enumerate(args):
            before = args[at - 1] if at and isinstance(args[at - 1], str) else ""
            self.shown_all(value, before)
            if isinstance(value, float) and PLAUSIBLE[0] < value < PLAUSIBLE[1]:
                self.constant_shown(before)
            elif isinstance(value, str) and (found := CONSTANT.search(value[:4000])):
                self.constant_shown(value[max(0, found.start() - 60) : found.end() - 4])

    def py_enumerate(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        start = named.get("start", args[1] if len(args) > 1 else 0)
        return [
            (i + (start if isinstance(start, int) else 0), v)
            for i, v in enumerate(self.iterate(args[0], None))
        ]

    def py_zip(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return list(zip(*[self.iterate(a, None) for a in args], strict=False))

    def py_map(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        items = list(zip(*[self.iterate(a, None) for a in args[1:]], strict=False))
        out: list[Any] = []
        for item in items[:2000]:
            mark = self.interest
            out.append(self.call_value(args[0], list(item), {}, node))
            if self.interest != mark and len(out) > _FEW:
                break
        return out

    def py_reduce(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        items = self.iterate(args[1], None) if len(args) > 1 else []
        whole, rest = (args[2], items) if len(args) > 2 else (items[:1], items[1:])
        whole = whole[0] if len(args) < 3 and whole else whole
        for item in rest:
            whole = self.call_value(args[0], [whole, item], {}, node)
        return whole

    def py_filter(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return self.iterate(args[1], None)

    def py_next(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        items = self.iterate(args[0], None)
        return items[0] if items else (args[1] if len(args) > 1 else Box())

    def py_sum(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        items = self.iterate(args[0], None)
        if all(isinstance(i, (int, float)) for i in items):
            return sum(items)
        items = [*items, *args[1:]]
        if any(isinstance(i, Instance) for i in items):
            add = ast.Add()
            return reduce(lambda a, b: self.binary(add, a, b, node), items[1:], items[0])
        parts = self.frozen([known(i) for i in items])
        whole = elementwise(parts, lambda *v: sum(v))
        single = whole.shape in {None, ()}
        out = reduced(whole, np.sum) if single else merge([whole], val=whole.val)
        self.averaged(parts, out)
        return out

    py_fsum = py_sum

    def py_min(
        self, args: list[Any], named: dict[str, Any], node: ast.AST, action: Any = min
    ) -> Any:
        items = self.iterate(args[0], None) if len(args) == 1 else args
        if named.get("key") is not None and len(items) > 1:
            return self.ranked(items, named["key"], node) if action is min else items[0]
        if items and all(isinstance(i, (int, float, np.generic)) for i in items):
            return smallest(items) if action is min else action(items)
        if all(isinstance(i, str) for i in items) and items:
            return action(items)
        boxes = [known(i) for i in items if not isinstance(i, (Instance, Function))]
        if not boxes:
            return named.get("default", Box())
        out = elementwise(
            self.frozen(boxes),
            (
                (lambda *v: np.min(np.stack(v), axis=0))
                if action is min
                else (lambda *v: np.max(np.stack(v), axis=0))
            ),
        )
        figures = [b for b in boxes if b.scores]
        return self.best_of(out, figures) if action is min else out

    def ranked(self, items: list[Any], key: Any, node: ast.AST) -> Any:
        """The item that comes first by a key."""
        ranks = [self.call_value(key, [item], {}, node) for item in items[:_MOST_RANKED]]
        return self.best_of(items[0], ranks)

    def best_of(self, item: Any, ranks: list[Any]) -> Any:
        """The item with the smallest of several ranks: where these are figures, or numbers that a
        file handed over, what is reported is the best of several.
        """
        told = [b for r in ranks for b in collect(r) if b.scores or b.marks & {"file"}]
        learnt = (
            (b.roots and b.nll and "bytes" not in b.marks) or "train" in b.marks for b in told
        )
        if len(told) < 2 or any(learnt):
            return item
        mark = frozenset({f"{WARP}{BEST} ({self.spot()})"})
        positions = merge(told).targets
        return throughout(
            item,
            lambda v: _marked(v, mark) if isinstance(v, Box) else picked(v, positions, self.line),
        )

    def smallest(self, value: Any) -> None:
        """A figure becomes the smallest of those that the ranks of a run have."""
        if isinstance(value, Box) and value.scores and "bytes" in value.marks:
            self.warp(value, BEST)

    def py_max(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return self.py_min(args, named, node, max)

    def py_any(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        tests = [self.truth(v) for v in self.iterate(args[0], None)]
        return True if True in tests else Box(shape=()) if None in tests else False

    def py_all(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        tests = [self.truth(v) for v in self.iterate(args[0], None)]
        return False if False in tests else Box(shape=()) if None in tests else True

    def py_isinstance(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        value, kinds = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        names = {k.name.rsplit(".", 1)[-1] for k in kinds if isinstance(k, Dotted)}
        if isinstance(value, Box):
            return True if names & {"Tensor", "ndarray", "Parameter"} else Box(shape=())
        if isinstance(value, (Instance, Module)):
            return any(k is value.cls for k in kinds) or (
                Box(shape=()) if isinstance(value, Module) else False
            )
        kinds = (int, float, str, list, tuple, dict, bool, bytes, set)
        native = {**{kind.__name__: kind for kind in kinds}, "Path": PurePosixPath}
        return any(isinstance(value, native[n]) for n in names if n in native)

    def py_hasattr(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        holder, name = args[0], args[1]
        if isinstance(holder, (Instance, Module)):
            cls = holder.cls
            found = name in holder.attrs or (cls is not None and cls.find(name) is not None)
            if isinstance(holder, Module) and cls is not None:
                found = found or name in _own_fields(cls)
            return found or (Box(shape=()) if isinstance(holder, Module) else False)
        if isinstance(holder, Namespace):
            return name in holder.attrs
        return holder.find(name) is not None if isinstance(holder, Class) else Box(shape=())

    def py_getattr(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        holder, name = args[0], args[1]
        self.cleared = self.cleared or isinstance(holder, Function)
        if not isinstance(name, str) or name == "?":
            return merge(collect(holder))
        if (
            len(args) > 2
            and isinstance(holder, (Instance, Namespace, Class))
            and self.truth(self.py_hasattr(args[:2], {}, node)) is False
        ):
            return args[2]
        return self.attribute(holder, name, node)

    def py_setattr(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        if len(args) == 3 and isinstance(args[1], str):
            self.set_attribute(args[0], args[1], args[2], node)

    def py_dict(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        out: dict[Any, Any] = {}
        if args:
            whole = isinstance(args[0], dict)
            pairs = args[0].items() if whole else self.iterate(args[0], None)
            kept = [p for p in pairs if isinstance(p, (tuple, list)) and len(p) == 2]
            out.update({key if whole else self.plain_key(key): value for key, value in kept})
        out.update(named)
        self.keep(out, *args)
        return out

    def py_super(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        holder = self.lookup("self")
        cls = getattr(holder, "cls", None)
        bases = [b for b in cls.bases if isinstance(b, Class)] if cls is not None else []
        body = bases[0].body if bases else {}
        methods = {k: v for k, v in body.items() if isinstance(v, Function)}
        return Namespace({k: Bound(holder, k, v) for k, v in methods.items()})

    def py_type(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return getattr(args[0], "cls", None) or Dotted("?") if args else Dotted("?")

    def py_exit(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        raise AbortSignal(True)

    py_quit = py_exit

    def py_exec(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """Text that is run: followed where it is known, noted where no rule of text sees it."""
        text = args[0] if args else None
        plain = isinstance(node, ast.Call) and name_of(node.func) in {"exec", "eval", "compile"}
        if isinstance(text, str) and "?" not in text and len(text) < _MAX_TEXT and not plain:
            try:
                body = ast.parse(text).body
            except (SyntaxError, ValueError, RecursionError):
                body = []
            self.block(body)
        elif not plain:
            self.unread("text that this review has not seen is run", node)
        return Box()

    py_eval = py_exec

    def py_compile(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return args[0] if args else Box()

    def py___import__(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        name = args[0] if args else None
        if isinstance(name, str) and "?" not in name:
            return self.import_program(name) or Dotted(name.partition(".")[0])
        self.unread("a module whose name is not known is imported", node)
        return Box()

    def unread(self, what: str, node: ast.AST) -> None:
        """Code that reading does not see takes part in the run."""
        self.calls_out("unread-code", node, what)

    def py_id(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return id(args[0]) if args else 0

    def py_callable(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return bool(args) and isinstance(args[0], (Function, Bound, Class, Dotted))

    def py_vars(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return getattr(args[0], "attrs", {}) if args else {}

    def py_globals(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return self.scopes[-1][-1]

    def py_slice(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return slice(*args)


def _own_fields(cls: Class) -> set[str]:
    """The attributes that a class of the program, or a base of it, sets on its instances."""
    out = {n.attr for n in ast.walk(cls.node) if isinstance(n, ast.Attribute) and is_own(n)}
    return out.union(*[_own_fields(base) for base in cls.bases if isinstance(base, Class)])


def _marked(value: Any, marks: frozenset[str]) -> Any:
    return snapshot(value, marks=value.marks | marks) if isinstance(value, Box) else value
