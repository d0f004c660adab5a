"""The command line: `niblick COMMAND ...`, read by typer (`niblick.cli.commands`).

Errors a user can cause become one line on standard error and the exit code of the error: 0 done, 1
the work found something wrong, 2 usage or bad input, 3 undecided (audit), 128 + n stopped by signal
n. The first signal ends a command in order, the next one at once; neither prints a traceback.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import TYPE_CHECKING, Any

from niblick.cli.plainly import read_plainly
from niblick.errors import NiblickError, NiblickWarning
from niblick.extras import needs
from niblick.lazy import lazily
from niblick.limits import cut, quoted
from niblick.registry import load_plugin, look_here

if TYPE_CHECKING:
    from niblick.cli.commands import COMMANDS, app

__all__ = ["COMMANDS", "app", "main"]
__getattr__ = lazily(__name__, {"niblick.cli.commands": ("COMMANDS", "app")})
_LONGEST_LINE = 2000  # paths included; what a file says is cut where it is quoted


def _take_plugins(arguments: list[str]) -> list[str]:
    """Load the modules that `--plugin MODULE` names, anywhere on the line; the other arguments."""
    rest, waiting = [], iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name != "--plugin":
            rest.append(argument)
        elif module := value if equals else next(waiting, ""):
            look_here()
            load_plugin(module)
        else:
            raise NiblickError("--plugin needs the name of a module")
    return rest


class _Stop(BaseException):
    """A signal ends the command; no handler of errors takes it for one."""


class _Stopper:
    """Handles signals: the first ends the command in order, the next one at once."""

    code = 0  # what the process ends with, once a signal has come

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            os._exit(self.code)
        self.code = 128 + number
        raise _Stop


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `niblick` command: runs it and exits with its code."""
    # pydantic would read what every installed distribution offers, as long as building all of our
    # validators takes
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    warnings.formatwarning = _format_warning
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # what it cannot show is spelled out
    stopper, before = _Stopper(), {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, stopper) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = _run(arguments)
        if code >= 128:
            stopper.code = code
    except _Stop:
        code = _fail(f"stopped by {signal.Signals(stopper.code - 128).name}", stopper.code)
    for each, handler in before.items():  # what was stopped is left to end in peace
        signal.signal(each, signal.SIG_IGN if code >= 128 else handler)
    sys.exit(code)


_format_any = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], *where: Any, **line: Any
) -> str:
    """Our own warnings in one line, without the place in the code that they come from."""
    if issubclass(category, NiblickWarning):
        return f"niblick: {message}\n"
    return _format_any(message, category, *where, **line)


def _run(arguments: list[str] | None) -> int:
    """The exit code of one command; expected errors are printed."""
    code = 0
    try:
        with needs("this command"):
            given = _take_plugins(sys.argv[1:] if arguments is None else arguments)
            plain = read_plainly(given)
            if plain is None:
                from niblick.cli.commands import run_command

                if sys.stdout is None and given[:1] != ["generate"]:  # which says so
                    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
                code = run_command(given)
            else:
                from niblick.cli.generation import generate

                generate(**plain)
    except NiblickError as error:
        code = _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except OSError as error:
        where = f"{quoted(error.filename)}: " if error.filename is not None else ""
        code = _fail(f"{where}{error.strerror or error}", 2)
    except MemoryError:
        code = _fail("the memory of this machine is not enough for that", 1)
    return code


def _fail(message: str, code: int) -> int:
    print("niblick: " + cut(message, _LONGEST_LINE), file=sys.stderr)
    return code
