"""Python's builtins and the parts of the standard library that decide what a training script
does.
"""

from __future__ import annotations

import ast
import math
import re
from pathlib import PurePosixPath
from typing import Any

from niblick.audit.flow.boxes import Box, collect, merge, snapshot
from niblick.audit.flow.datasets import Datasets
from niblick.audit.flow.objects import Class, Dotted, Instance, Namespace
from niblick.audit.flow.paths import glob_paths
from niblick.audit.flow.signals import AbortSignal
from niblick.audit.words import ordered

_OUTSIDE = ordered(
    "requests urllib socket http huggingface_hub wandb subprocess aiohttp boto3 datasets"
)
_PICKLES = ("pickle.", "cPickle.", "dill.", "cloudpickle.", "joblib.", "_pickle.", "marshal.")


class DefaultDict(dict[Any, Any]):
    """A dictionary of the program with a factory for missing keys."""

    factory: Any = None


class Library(Datasets):
    """Builtins, the standard library, and files."""

    def standard(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """A standard-library call by dotted name; NotImplemented when it is not one we know."""
        last = name.rsplit(".", 1)[-1]
        if name in {"os.environ.get", "os.getenv", "environ.get"} and args:
            default = args[1] if len(args) > 1 else named.get("default")
            return self.environ(str(args[0]), default)
        if name in {"os.environ.setdefault"} and len(args) > 1:
            return self.environment.setdefault(str(args[0]), str(args[1]))
        if name == "os.environ.update" and args and isinstance(args[0], dict):
            self.environment.update({str(k): v for k, v in args[0].items() if isinstance(v, str)})
            return None
        globs = last in {"glob", "iglob"} and name.startswith("glob")
        if globs and args and isinstance(args[0], (str, PurePosixPath)):
            return glob_paths(str(args[0]))
        if name in {"os.listdir", "os.scandir"} and args:
            return glob_paths(f"{args[0]}/*.bin")
        if name in {"os.path.join"}:
            return "/".join(str(a) for a in args if isinstance(a, (str, PurePosixPath)))
        if name.startswith("os.path."):
            return self.path_call(last, args)
        if name in {"functools.reduce", "math.fsum"}:
            return self.builtin(last, args, named, node)
        if name.startswith(("math.", "cmath.")):
            return self.mathematics(last, args, node)
        if name.startswith("time.") and last != "sleep":
            return Box(shape=(), marks=frozenset({"time"}))
        if name in {"sys.exit", "os._exit"}:
            raise AbortSignal(True)
        return self.objects_call(name, last, args, named, node)

    def mathematics(self, last: str, args: list[Any], node: ast.AST) -> Any:
        function = getattr(math, last, None)
        if not callable(function):
            return Box(shape=())
        if any(isinstance(a, Box) for a in args):
            out = self.tensor_call(last, args[:1], {}, node, False)
            known_one = isinstance(out, Box)
            return snapshot(out if known_one else merge(self.frozen(collect(args))), shape=())
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
            size = int(digits[0]) if digits else 4
            return Namespace({"itemsize": max(1, size // 8 if size > 8 else size)})
        if last in {"deepcopy", "copy"} and name.startswith("copy.") and args:
            return self.copied(args[0])
        if name in {"typing.cast", "typing.assert_type"} and args:
            return args[last == "cast"]
        made = self.made_object(name, last, args, named, node)
        return self.outside_call(name, last, args, named, node) if made is NotImplemented else made

    def made_object(
        self, name: str, last: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        """Containers, records and other plain objects of the standard library, and data sets."""
        if last in {"Subset", "DataLoader"}:
            return self.handed_out(last, args, named, node)
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
        if last == "namedtuple" and len(args) > 1 and isinstance(args[1], (str, list, tuple)):
            names = args[1].replace(",", " ").split() if isinstance(args[1], str) else args[1]
            body = {"__fields__": list(names)}
            row = ast.ClassDef(str(args[0]), [], [], [], [])
            return Class(row.name, (Dotted("typing.NamedTuple"),), body, "dataclass", row)
        if last == "deque":
            return self.iterate(args[0], None) if args else []
        if last in {"SimpleNamespace", "Namespace", "ModuleType"}:
            return Namespace(dict(named))
        if last in {"spec_from_file_location", "module_from_spec", "import_module"} and args:
            return self.module_by_file(last, args)
        if last == "field" and ("dataclasses" in name or "default_factory" in named):
            factory = named.get("default_factory")
            if "default" in named:
                return named["default"]
            return self.call_value(factory, [], {}, node)
        if last == "Thread" and "target" in named:
            return Namespace(
                {"__thread__": named["target"], "__args__": list(named.get("args", ()))}
            )
        if last == "ArgumentParser":
            return Namespace({"__parser__": {}})
        return NotImplemented

    def outside_call(
        self, name: str, last: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        """Files, saved data, and what lies outside the machine."""
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
            self.calls_out(name, node, detail)
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
