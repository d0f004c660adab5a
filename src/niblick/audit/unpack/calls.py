"""What a call in loader code means: decoders, pure methods, virtual files, and the calls that would
run text.
"""

from __future__ import annotations

import ast
from typing import Any

from niblick.audit.unpack.codecs import DECODERS, MAX_TEXT, PackError, as_bytes
from niblick.audit.unpack.evaluate import Evaluator, try_
from niblick.audit.unpack.tables import BUILTINS, JOIN, METHODS, RUN, RUN_FILE, SAME
from niblick.audit.unpack.values import UNKNOWN, Dotted, Executed, Function, Handle, Space, constant
from niblick.audit.words import words

_MODULE = words(
    "types.ModuleType importlib.util.spec_from_loader importlib.util.module_from_spec vars"
)

_FROM_FILE = words("importlib.util.spec_from_file_location importlib.machinery.SourceFileLoader")
_THERE = words("os.path.exists os.path.isfile")


def call(run: Evaluator, node: ast.Call, scope: dict[str, Any]) -> Any:
    """The value of a call, `UNKNOWN` when it is not one a loader needs."""
    function = _callee(run, node, scope)
    if isinstance(function, Dotted) and function.name in RUN | RUN_FILE:
        return _execute(run, function.name, node, scope)
    args = [run.value(a.value if isinstance(a, ast.Starred) else a, scope) for a in node.args]
    if node.args and isinstance(node.args[-1], ast.Starred):
        args[-1:] = run.items(args[-1])
    named = {k.arg: constant(run.value(k.value, scope)) for k in node.keywords if k.arg}
    if isinstance(function, Function):
        return run.invoke(function, args, named)
    if isinstance(function, Dotted):
        return _named_call(run, function.name, args, named)
    if isinstance(function, tuple):
        return _method(run, function[0], function[1], args, named)
    return UNKNOWN


def _callee(run: Evaluator, node: ast.Call, scope: dict[str, Any]) -> Any:
    """A `Dotted` name, a `Function`, or (holder, method name)."""
    if not isinstance(node.func, ast.Attribute):
        return run.value(node.func, scope)
    holder = run.value(node.func.value, scope)
    if isinstance(holder, Dotted):
        return Dotted(f"{holder.name}.{node.func.attr}")
    if holder is UNKNOWN:
        return (
            (holder, node.func.attr)
            if run.assumed and node.func.attr in {"get", "pop", "__getitem__"}
            else UNKNOWN
        )
    return holder, node.func.attr


def _named_call(run: Evaluator, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    args = [constant(a) for a in args]
    if name in {"__import__", "importlib.import_module"} and args and isinstance(args[0], str):
        return Dotted(args[0])
    if name == "getattr" and len(args) > 1 and isinstance(args[0], Dotted):
        return Dotted(f"{args[0].name}.{args[1]}")
    if name == "open" and args:
        return Handle(str(args[0]), str(args[1] if len(args) > 1 else named.get("mode", "r")))
    if name in _FROM_FILE and len(args) > 1 and all(isinstance(a, str) for a in args[:2]):
        return Space(*args[:2])
    if name in _THERE and args:
        return str(args[0]).rpartition("/")[2] in {n.rpartition("/")[2] for n in run.loader.files}
    if name in JOIN:
        return "/".join(a for a in args if isinstance(a, str))
    if name in {"tempfile.mkdtemp", "tempfile.gettempdir"}:
        return "/scratch"
    if name == "os.environ.update":
        pairs = {**(args[0] if args and isinstance(args[0], dict) else {}), **named}
        run.loader.environment.update({k: v for k, v in pairs.items() if isinstance(v, str)})
        return None
    if name in {"os.environ.setdefault"} and len(args) == 2:
        run.loader.environment.setdefault(str(args[0]), str(args[1]))
    if name in SAME:
        return args[0] if args else UNKNOWN
    if name in _MODULE and args and isinstance(args[0], (str, Space)):
        return args[0] if isinstance(args[0], Space) else Space(args[0])
    if any(a is UNKNOWN for a in args):
        return UNKNOWN
    if name in DECODERS:
        return _decode(run, name, args, named)
    if name in BUILTINS:
        return _builtin(run, name, args, named)
    return UNKNOWN


def _builtin(run: Evaluator, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    if name in {"bytes", "bytearray"} and args and isinstance(args[0], int) and args[0] > MAX_TEXT:
        raise PackError(f"a loader value of {args[0]} bytes, at most {MAX_TEXT}")
    if name in {"map", "filter"} and isinstance(args[0], (Function, Dotted)):
        call_one = args[0]
        items = run.items(args[1])
        if isinstance(call_one, Function):
            return [run.invoke(call_one, [item], {}) for item in items]
        return [_named_call(run, call_one.name, [item], {}) for item in items]
    if name in {"str", "repr"} and args and not isinstance(args[0], (str, bytes, int, float)):
        return UNKNOWN
    return try_(lambda: BUILTINS[name](*args, **named))


def _decode(run: Evaluator, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    if name == "json.loads":
        return try_(lambda: DECODERS[name](*args))
    run.loader.layers.append(name.rsplit(".", 1)[0] if name != "codecs.decode" else str(args[-1]))
    if "base64" in name or "binascii" in name or "fromhex" in name:
        run.loader.layers[-1] = {
            "b85decode": "base85",
            "a85decode": "ascii85",
            "fromhex": "hex",
            "unhexlify": "hex",
            "a2b_hex": "hex",
        }.get(name.rsplit(".", 1)[1], "base64")
    try:
        return DECODERS[name](*args, **named)
    except PackError:
        raise
    except (LookupError, AttributeError):  # a codec that only the script itself knows
        return UNKNOWN
    except Exception as error:
        raise PackError(f"{name} cannot decode the payload: {error}") from error


def _method(run: Evaluator, holder: Any, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    if isinstance(holder, Handle):
        return _file(run, holder, name, args)
    if isinstance(holder, Space) and name in {"exec_module", "load_module"}:
        text = _file(run, Handle(holder.path, "r"), "read", [])
        layers = (*run.loader.layers, "module")
        run.loader.layers.clear()
        if isinstance(text, str):
            run.loader.executed.append(Executed(text, layers, run.line, holder.name, name))
        return holder
    if isinstance(holder, str) and name in {"read_text", "read_bytes"}:
        return _file(run, Handle(holder, "rb" if name == "read_bytes" else "r"), "read", [])
    if isinstance(holder, str) and name in {"write_text", "write_bytes"}:
        return _file(run, Handle(holder, "w"), "write", args)
    if isinstance(holder, (bytes, str)) and name in {"read", "getvalue"}:
        return holder
    if name == "decode" and isinstance(holder, (bytes, bytearray)):
        return try_(lambda: bytes(holder).decode(*args, **named))
    if name in {"get", "pop", "__getitem__"} and args and args[0] is UNKNOWN:
        return run.entry(holder)
    if name not in METHODS or UNKNOWN in args:
        return UNKNOWN
    if (
        name == "replace"
        and len(args) >= 2
        and (len(holder) + 1) * (len(args[1]) + 1) > MAX_TEXT * 4
    ):
        raise PackError("a loader replacement beyond the bound")
    if name == "join" and args:
        args = [run.items(args[0])]
        if len(holder) * len(args[0]) > MAX_TEXT:
            raise PackError("a loader join beyond the bound")
    return try_(lambda: getattr(holder, name)(*args, **named))


def _file(run: Evaluator, handle: Handle, name: str, args: list[Any]) -> Any:
    files = run.loader.files
    key = handle.path
    if name == "write" and args and isinstance(args[0], (str, bytes)):
        text: Any = args[0]
        files[key] = (files.get(key) or text[:0]) + text if "a" in handle.mode else text
        return len(text)
    if name == "read":
        value = files.get(key, files.get(key.rsplit("/", 1)[-1], UNKNOWN))
        if "b" in handle.mode and isinstance(value, str):
            return value.encode()
        if "b" not in handle.mode and isinstance(value, bytes):
            return try_(lambda: value.decode("utf-8"))
        return value
    return handle if name == "__enter__" else None


def _execute(run: Evaluator, name: str, node: ast.Call, scope: dict[str, Any]) -> Any:
    """Records text that `exec`, `eval` or a runner of files would run."""
    value = run.value(node.args[0], scope) if node.args else UNKNOWN
    if name in RUN_FILE:
        names = [value] if isinstance(value, str) else run.items(value)
        known = [run.loader.files[n] for n in names if isinstance(n, str) and n in run.loader.files]
        value = known[0] if known else UNKNOWN
    if isinstance(value, (bytes, bytearray)):
        value = try_(lambda: as_bytes(value).decode("utf-8-sig"))
    layers = (*run.loader.layers, "exec")
    run.loader.layers.clear()
    if isinstance(value, str):
        if name.endswith("eval") and not _looks_packed(value):
            return UNKNOWN
        space = run.value(node.args[1], scope) if len(node.args) > 1 else None
        module = space.name if isinstance(space, Space) else None
        run.loader.executed.append(Executed(value, layers, node.lineno, module, ast.unparse(node)))
    return UNKNOWN


def _looks_packed(text: str) -> bool:
    return len(text) > 200 or "\n" in text or "exec" in text
