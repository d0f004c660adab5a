"""What loader code may call: builtins that only handle data, and names that run text."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, KeysView, ValuesView
from typing import Any

from niblick.audit.words import words

ITERABLE = (
    str,
    bytes,
    bytearray,
    list,
    tuple,
    dict,
    set,
    range,
    zip,
    enumerate,
    reversed,
    map,
    KeysView,
    ValuesView,
    ItemsView,
)
METHODS = words(
    "encode decode replace join strip lstrip rstrip split splitlines translate removeprefix"
    " removesuffix lower upper swapcase startswith endswith hex append extend items keys values"
    " get update pop reverse to_bytes find partition"
)
BUILTINS: dict[str, Callable[..., Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "str": str,
    "len": len,
    "ord": ord,
    "chr": chr,
    "int": int,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "zip": zip,
    "enumerate": enumerate,
    "reversed": reversed,
    "sorted": sorted,
    "range": range,
    "min": min,
    "max": max,
    "sum": sum,
    "bool": bool,
    "set": set,
    "str.maketrans": str.maketrans,
    "bytes.maketrans": bytes.maketrans,
    "hex": hex,
    "abs": abs,
    "int.from_bytes": int.from_bytes,
    "repr": repr,
    "iter": iter,
    "next": next,
    "map": map,
    "filter": filter,
}
JOIN = frozenset({"os.path.join", "posixpath.join"})
SAME = words(
    "compile io.BytesIO io.StringIO memoryview textwrap.dedent pathlib.Path os.path.abspath"
    " os.path.realpath os.path.expanduser"
)
RUN = frozenset({"exec", "eval", "builtins.exec", "builtins.eval"})
RUN_FILE = words(
    "runpy.run_path os.system subprocess.run subprocess.call subprocess.check_call"
    " subprocess.Popen os.execv os.execvp"
)
