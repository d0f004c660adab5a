"""What loader code may call: builtins that only handle data, and names that run text."""

from __future__ import annotations

import builtins
from collections.abc import Callable, ItemsView, KeysView, ValuesView
from typing import Any

from niblick.audit.words import words

_CONTAINERS = (str, bytes, bytearray, list, tuple, dict, set, range)
ITERABLE = (*_CONTAINERS, zip, enumerate, reversed, map, KeysView, ValuesView, ItemsView)
METHODS = words(
    "encode decode replace join strip lstrip rstrip split splitlines translate removeprefix"
    " removesuffix lower upper swapcase startswith endswith hex append extend items keys values"
    " get update pop reverse to_bytes find partition"
)
_NAMES = words(
    "bytes bytearray str len ord chr int list tuple dict zip enumerate reversed sorted range min"
    " max sum bool set hex abs repr iter next map filter"
)
BUILTINS: dict[str, Callable[..., Any]] = {
    **{name: getattr(builtins, name) for name in _NAMES},
    "str.maketrans": str.maketrans,
    "bytes.maketrans": bytes.maketrans,
    "int.from_bytes": int.from_bytes,
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
