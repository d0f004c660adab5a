"""Python's builtins and the parts of the standard library that decide what a training script
does.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Box, collect, elementwise, known, merge, reduced, snapshot
from niblick.audit.flow.methods import tail
from niblick.audit.flow.objects import (
    Bound,
    CallEvent,
    Class,
    Dotted,
    Function,
    Instance,
    Module,
    Namespace,
)
from niblick.audit.flow.paths import glob_paths
from niblick.audit.flow.records import Records
from niblick.audit.flow.signals import AbortSignal

_OUTSIDE = (
    "requests",
    "urllib",
    "socket",
    "http",
    "huggingface_hub",
    "wandb",
    "subprocess",
    "aiohttp",
    "boto3",
    "datasets",
)
_PICKLES = ("pickle.", "cPickle.", "dill.", "cloudpickle.", "joblib.", "_pickle.", "marshal.")
_MAX_TEXT = 200_000
_PURE: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "abs": abs,
    "round": round,
    "divmod": divmod,
    "ord": ord,
    "chr": chr,
    "pow": pow,
    "bytes": bytes,
    "hash": lambda v: hash(str(v)) % 2**31,
    "hex": hex,
    "bin": bin,
    "repr": repr,
}


class DefaultDict(dict[Any, Any]):
    """A dictionary of the program with a factory for missing keys."""

    factory: Any = None


class Library(Records):
    """Builtins, the standard library, and files."""

    def builtin(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """A Python builtin; NotImplemented when it is not one we know."""
        handler = getattr(self, f"py_{name}", None)
        if handler is not None:
            return handler(args, named, node)
        if name in _PURE:
            return self.pure(name, args, named)
        if name in {"list", "tuple", "set", "sorted", "reversed", "iter", "frozenset"}:
            return self.sequence(name, args)
        return NotImplemented

    def pure(self, name: str, args: list[Any], named: dict[str, Any]) -> Any:
        bound = args[0] if args and isinstance(args[0], Bound) else None
        if bound is not None and isinstance(bound.holder, Box) and bound.name == "size":
            args = [self.reshaping("numel", bound.holder, [bound.holder], {}), *args[1:]]
        if args and isinstance(args[0], Box):
            box = self.frozen([args[0]])[0]
            plain = (
                box.val is not None
                and box.val.size == 1
                and box.pos is None
                and not (box.roots or box.deps or box.held or box.scores or box.key is not None)
                and "bytes" not in box.marks
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
        sizes = []
        for arg in args:
            if isinstance(arg, Box) and arg.val is not None and arg.val.size == 1:
                arg = int(arg.val.reshape(-1)[0])
            if not isinstance(arg, (int, np.integer)):
                return range(2) if len(args) < 3 else [Box(shape=())]
            sizes.append(int(arg))
        return range(*sizes) if len(sizes) < 3 or sizes[2] else []

    def py_len(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        value = args[0] if args else []
        if isinstance(value, (list, tuple, dict, str, bytes, set, range)):
            return len(value)
        if isinstance(value, Box) and value.shape and value.shape[0] is not None:
            return value.shape[0]
        if isinstance(value, Instance) and isinstance(
            method := value.cls.find("__len__"), Function
        ):
            return self.call_function(method, [value], {}, node)
        return merge(collect(value), shape=())

    def py_print(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        for at, value in enumerate(args):
            before = args[at - 1] if at and isinstance(args[at - 1], str) else ""
            self.shown_all(value, before)

    def py_enumerate(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        start = named.get("start", args[1] if len(args) > 1 else 0)
        return [
            (i + (start if isinstance(start, int) else 0), v)
            for i, v in enumerate(self.iterate(args[0], None))
        ]

    def py_zip(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return list(zip(*[self.iterate(a, None) for a in args], strict=False))

    def py_map(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return [
            self.call_value(args[0], [item], {}, node)
            for item in self.iterate(args[1], None)[:2000]
        ]

    def py_filter(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return self.iterate(args[1], None)

    def py_next(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        items = self.iterate(args[0], None)
        return items[0] if items else (args[1] if len(args) > 1 else Box())

    def py_sum(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        items = self.iterate(args[0], None)
        if all(isinstance(i, (int, float)) for i in items):
            return sum(items)
        return reduced(elementwise(self.frozen([known(i) for i in items]))) if items else 0

    def py_min(
        self, args: list[Any], named: dict[str, Any], node: ast.AST, action: Any = min
    ) -> Any:
        items = self.iterate(args[0], None) if len(args) == 1 else args
        if items and all(isinstance(i, (int, float, np.generic)) for i in items):
            return action(items)
        if all(isinstance(i, str) for i in items) and items:
            return action(items)
        boxes = [known(i) for i in items if not isinstance(i, (Instance, Function))]
        if not boxes:
            return named.get("default", Box())
        return elementwise(
            self.frozen(boxes),
            (
                (lambda *v: np.min(np.stack(v), axis=0))
                if action is min
                else (lambda *v: np.max(np.stack(v), axis=0))
            ),
        )

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
        native = {
            "int": int,
            "float": float,
            "str": str,
            "list": list,
            "tuple": tuple,
            "dict": dict,
            "bool": bool,
            "bytes": bytes,
            "set": set,
            "Path": PurePosixPath,
        }
        return any(isinstance(value, native[n]) for n in names if n in native)

    def py_hasattr(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        holder, name = args[0], args[1]
        if isinstance(holder, (Instance, Module)):
            found = name in holder.attrs or (
                holder.cls is not None and holder.cls.find(name) is not None
            )
            return found or (Box(shape=()) if isinstance(holder, Module) else False)
        if isinstance(holder, Namespace):
            return name in holder.attrs
        return holder.find(name) is not None if isinstance(holder, Class) else Box(shape=())

    def py_getattr(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        holder, name = args[0], args[1]
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
            out.update(
                args[0]
                if isinstance(args[0], dict)
                else {
                    self.plain_key(p[0]): p[1]
                    for p in self.iterate(args[0], None)
                    if isinstance(p, (tuple, list)) and len(p) == 2
                }
            )
        out.update(named)
        self.keep(out, *args)
        return out

    def py_super(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        holder = self.lookup("self")
        cls = getattr(holder, "cls", None)
        base = (
            next((b for b in cls.bases if isinstance(b, Class)), None) if cls is not None else None
        )
        return Namespace(
            {
                k: Bound(holder, k, v)
                for k, v in (base.body if base else {}).items()
                if isinstance(v, Function)
            }
        )

    def py_type(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return getattr(args[0], "cls", None) or Dotted("?") if args else Dotted("?")

    def py_exit(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        raise AbortSignal(True)

    py_quit = py_exit

    def py_exec(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """Text that is run: followed where it is known, noted where no rule of text sees it."""
        text = args[0] if args else None
        plain = isinstance(node, ast.Call) and tail(node.func) in {"exec", "eval", "compile"}
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
        self.order += 1
        self.trace.calls.append(
            CallEvent(
                name="unread-code",
                where=self.where(node),
                certain=self.uncertain <= 0,
                detail=what,
                order=self.order,
            )
        )

    def py_id(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return id(args[0]) if args else 0

    def py_callable(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return isinstance(args[0], (Function, Bound, Class)) if args else False

    def py_vars(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return getattr(args[0], "attrs", {}) if args else {}

    def py_globals(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return self.scopes[-1][-1]

    def py_slice(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        return slice(*args)

    def standard(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """A standard-library call by dotted name; NotImplemented when it is not one we know."""
        last = name.rsplit(".", 1)[-1]
        if name in {"os.environ.get", "os.getenv", "environ.get"}:
            return (
                self.environ(str(args[0]), args[1] if len(args) > 1 else named.get("default"))
                if args
                else Box()
            )
        if name in {"os.environ.setdefault"} and len(args) > 1:
            return self.environment.setdefault(str(args[0]), str(args[1]))
        if name == "os.environ.update" and args and isinstance(args[0], dict):
            self.environment.update({str(k): v for k, v in args[0].items() if isinstance(v, str)})
            return None
        if (
            last in {"glob", "iglob"}
            and name.startswith("glob")
            and args
            and isinstance(args[0], (str, PurePosixPath))
        ):
            return glob_paths(str(args[0]))
        if name in {"os.listdir", "os.scandir"} and args:
            return glob_paths(f"{args[0]}/*.bin")
        if name in {"os.path.join"}:
            return "/".join(str(a) for a in args if isinstance(a, (str, PurePosixPath)))
        if name.startswith("os.path."):
            return self.path_call(last, args)
        if name.startswith(("math.", "cmath.")):
            return self.mathematics(last, args)
        if name.startswith("time.") and last != "sleep":
            return Box(shape=(), marks=frozenset({"time"}))
        if name in {"sys.exit", "os._exit"}:
            raise AbortSignal(True)
        return self.objects_call(name, last, args, named, node)

    def mathematics(self, last: str, args: list[Any]) -> Any:
        function = getattr(math, last, None)
        if not callable(function):
            return Box(shape=())
        if any(isinstance(a, Box) for a in args):
            name = {"log": "log", "exp": "exp", "log2": "log2", "sqrt": "sqrt"}.get(last)
            out = elementwise(
                self.frozen([known(a) for a in args[:1]]), getattr(np, name) if name else None
            )
            return snapshot(out, shape=())
        try:
            return function(*args)
        except (TypeError, ValueError, OverflowError):
            return Box(shape=())

    def objects_call(
        self, name: str, last: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        if last in {"load", "loads"} and name.startswith(_PICKLES) and self.foreign(args):
            self.unread(f"{name} reads a file that the run has not written", node)
        if last in {"Path", "PurePath", "PosixPath"}:
            return PurePosixPath(*[str(a) for a in args if isinstance(a, (str, PurePosixPath))])
        if last == "dtype" and args and isinstance(args[0], str):
            digits = re.search(r"\d+", args[0])
            return Namespace(
                {
                    "itemsize": (
                        max(1, int(digits[0]) // (8 if int(digits[0]) > 8 else 1)) if digits else 4
                    )
                }
            )
        if last in {"deepcopy", "copy"} and name.startswith("copy.") and args:
            return self.copied(args[0])
        if name in {"json.loads", "json.dumps"} and args:
            return self.plain_json(last, args)
        if (
            name in {"dataclasses.replace", "copy.replace"}
            and args
            and isinstance(args[0], Instance)
        ):
            return self.replaced(args[0], named)
        if last == "partial" and args:
            return Namespace({"__call__": args[0], "__args__": args[1:], "__named__": named})
        if last == "defaultdict":
            out = DefaultDict()
            out.factory = args[0] if args else None
            return out
        if last in {"OrderedDict", "Counter"}:
            made = DefaultDict(self.py_dict(args[:1] if last == "OrderedDict" else [], named, node))
            made.factory = 0 if last == "Counter" else None
            if last == "Counter":
                self.keep(made, *args)
            return made
        if last == "deque":
            return self.iterate(args[0], None) if args else []
        if last in {"SimpleNamespace", "Namespace", "ModuleType"}:
            return Namespace(dict(named))
        if last in {"spec_from_file_location", "module_from_spec", "import_module"} and args:
            return self.module_by_file(last, args)
        if (last == "field" and "dataclasses" in name) or (
            last == "field" and "default_factory" in named
        ):
            return (
                named["default"]
                if "default" in named
                else self.call_value(named.get("default_factory"), [], {}, node)
            )
        if last == "Thread" and "target" in named:
            return Namespace(
                {"__thread__": named["target"], "__args__": list(named.get("args", ()))}
            )
        if last == "ArgumentParser":
            return Namespace({"__parser__": {}})
        if last in frozenset(
            ["fromfile", "memmap", "load", "from_file", "load_file", "read_table", "loadtxt"]
        ):
            return self.loaded_data(name, last, args, named)
        if last in {"save", "savez", "save_file", "dump"} and args:
            return self.saved(args)
        if last == "BytesIO":
            return merge(self.frozen(collect(args)))
        if name.startswith(_OUTSIDE) or last in frozenset(
            ["snapshot_download", "hf_hub_download", "urlopen", "urlretrieve", "system", "popen"]
        ):
            detail = str(args[0])[:120] if args and isinstance(args[0], (str, list, tuple)) else ""
            self.order += 1
            self.trace.calls.append(
                CallEvent(
                    name=name,
                    where=self.where(node),
                    certain=self.uncertain <= 0,
                    detail=detail,
                    order=self.order,
                )
            )
            return merge(collect(args))
        return NotImplemented

    def foreign(self, values: list[Any]) -> bool:
        """Whether values come from a file that the program has not written itself."""
        paths = [
            v.attrs["__path__"]
            for v in values
            if isinstance(v, Namespace) and "__path__" in v.attrs
        ]
        boxes = [*self.frozen(collect(values)), *(self.read_data(p, {}) for p in paths)]
        return any("foreign" in box.marks for box in boxes)

    def module_by_file(self, last: str, args: list[Any]) -> Any:
        """What importlib makes of a file or a name: a module of the program where it is one."""
        if last == "spec_from_file_location":
            return Namespace(
                {"__module__": PurePosixPath(str(args[-1])).stem, "loader": Namespace({})}
            )
        name = args[0].attrs.get("__module__") if isinstance(args[0], Namespace) else args[0]
        found = self.import_program(name) if isinstance(name, str) else None
        return found or (
            Dotted(name) if last == "import_module" and isinstance(name, str) else Namespace({})
        )

    def block(self, body: list[ast.stmt]) -> None:
        raise NotImplementedError

    def import_program(self, name: str) -> Namespace | None:
        raise NotImplementedError

    def call_value(self, callee: Any, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        raise NotImplementedError
