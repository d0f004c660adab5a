"""Imports a script as its own Python would: folder on the path, registered, not as `__main__`.

What the import needs of a launcher (rank, world size) is set as torchrun sets it for one process;
f-strings of Python 3.12 are made readable to older Pythons, in packed text too. Guarantees: an
exception of the script, `SystemExit` included, is described and never escapes.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from niblick.audit.inside.watching import Attempts
from niblick.audit.unpack.fstrings import for_old_parser

LAUNCHER = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
_PROGRAM_BYTES, _MOST_PROGRAMS = 2_000, 8


@dataclass
class Loaded:
    """An import as it went: the module where it succeeded, else the failure in plain words."""

    module: ModuleType | None = None
    seconds: float = 0.0
    failure: dict[str, Any] | None = None
    attempts: list[str] = field(default_factory=list)
    executed: list[str] = field(
        default_factory=list
    )  # texts the script gave to `exec`, longest first

    def summary(self) -> dict[str, Any]:
        """The part that can leave the sandbox."""
        return {
            "ok": self.failure is None,
            "seconds": round(self.seconds, 4),
            "failure": self.failure,
            "attempts": self.attempts,
        }


class HandedOver(BaseException):
    """Raised in place of a script's replacing itself by another program, which would end the test
    unseen.
    """


def _hand_over(path: Any, *arguments: Any) -> None:
    raise HandedOver(f"{path} {' '.join(map(str, arguments))}"[:300])


def load_script(folder: str, script: str, environment: dict[str, str], clock: Any = None) -> Loaded:
    """Imports `folder/script` under `environment`; `clock()` gives seconds that are not the
    script's own.
    """
    path = Path(folder, script)
    os.environ.update(LAUNCHER | environment)
    os.chdir(path.parent)
    sys.argv = [str(path)]
    sys.path.insert(0, str(path.parent))
    sys.path.append(folder)
    attempts = Attempts(folder)
    loaded = Loaded(attempts=attempts.seen)
    _read_new_syntax(loaded.executed)
    for name in ("execv", "execve", "execvp", "execvpe", "execl", "execle", "execlp", "execlpe"):
        setattr(os, name, _hand_over)
    started = time.perf_counter()
    before = clock() if clock else 0.0
    try:
        loaded.module = _import(path)
    except BaseException as error:  # noqa: BLE001 - a script may raise anything
        loaded.failure = describe(error, folder)
    loaded.seconds = time.perf_counter() - started - ((clock() if clock else 0.0) - before)
    attempts.close()
    loaded.executed.sort(key=len, reverse=True)
    return loaded


def _import(path: Path) -> ModuleType:
    name = (
        path.stem
        if path.stem.isidentifier() and path.stem not in sys.modules
        else "submitted_script"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:  # a file with another suffix
        loader = importlib.machinery.SourceFileLoader(name, str(path))
        spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _read_new_syntax(executed: list[str]) -> None:
    """Lets this Python compile f-strings of Python 3.12, in files and in text given to `compile` or
    `exec`.

    Texts given to `exec` are kept in `executed`: the program of a packed script is one of them.
    """
    plain_compile, plain_exec = builtins.compile, builtins.exec

    def lenient(source: Any, filename: Any, mode: str, *rest: Any, **options: Any) -> Any:
        try:
            return plain_compile(source, filename, mode, *rest, **options)
        except SyntaxError:
            text = _text_of(source)
            if text is None or sys.version_info >= (3, 12):
                raise
            return plain_compile(for_old_parser(text), filename, mode, *rest, **options)

    def run(source: Any, *spaces: Any, **options: Any) -> None:
        if not isinstance(source, CodeType):
            text = source if isinstance(source, str) else bytes(source)
            if len(text) > _PROGRAM_BYTES and len(executed) < _MOST_PROGRAMS:
                executed.extend(filter(None, [_text_of(text)]))
            source = lenient(text, "<string>", "exec", dont_inherit=True)
        if not spaces or spaces[0] is None:
            frame = sys._getframe(1)
            spaces = (frame.f_globals, frame.f_locals)
        plain_exec(source, *spaces, **options)

    builtins.compile, builtins.exec = lenient, run
    loader: Any = importlib.machinery.SourceFileLoader
    loader.source_to_code = lambda self, data, path, **_: lenient(
        data, path, "exec", dont_inherit=True
    )


def _text_of(source: Any) -> str | None:
    if isinstance(source, str):
        return source
    try:
        return importlib.util.decode_source(bytes(source))
    except (TypeError, ValueError, SyntaxError):
        return None


def describe(error: BaseException, folder: str) -> dict[str, Any]:
    """Type, message, place and missing name of a failure; every text in it comes from the
    submission.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if frame.filename.startswith(folder) or frame.filename == "<string>"
    ]
    place = own[-1] if own else None
    root = error
    while (
        not isinstance(root, ImportError | OSError)
        and (root.__cause__ or root.__context__) is not None
    ):
        nearer = root.__cause__ or root.__context__
        assert nearer is not None
        root = nearer
    line = error.lineno if isinstance(error, SyntaxError) else (place.lineno if place else None)
    return {
        "type": type(error).__name__,
        "bases": [base.__name__ for base in type(error).__mro__],
        "message": str(error)[:500],
        "file": place.filename.removeprefix(folder + "/") if place else None,
        "line": line,
        "code": (place.line or "")[:200] if place else None,
        "missing": getattr(root, "name", None) if isinstance(root, ImportError) else None,
        "path": str(root.filename)[:300] if isinstance(root, OSError) and root.filename else None,
        "importing": isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError),
        "last": frames[-1].filename[-120:] if frames else None,
    }
