"""Whose fault a failed import is: the submission's own, or something that the reviewing machine
lacks.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niblick.audit.sandbox import Outcome
from niblick.audit.stand_ins.catalog import GPU_PACKAGES, installs

VARIABLE = "environment variable "
_NEEDS_DEVICE = re.compile(
    r"cuda|nvidia|nccl|\bgpu\b|hip\b|cudnn|triton|device-side|libdevice|nvcc|metal|\bmps\b|stand-in|standin",
    re.IGNORECASE,
)
_DATA = re.compile(
    r"\.bin\b|fineweb|datasets?/|\.model\b|tokenizer|shard|val_\*|train_\*", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Blame:
    """`own` is True for the submission's fault; `error` and `missing` hold the submission's text,
    unescaped.
    """

    own: bool
    error: str
    missing: str | None = None
    cure: str | None = None


def blame(readable: bool, outcome: Outcome, stood_in: list[str], declared: set[str]) -> Blame:
    """Decides from the worker's report, or from how the run ended where there is none; `readable`
    tells that the audit's own reader could parse the file as it is.
    """
    if outcome.result is None or outcome.reason is not None:
        return _blame_end(outcome)
    if "harness" in outcome.result:
        last = str(outcome.result["harness"]).strip().rpartition("\n")[2]
        return Blame(
            own=False, error=f"the smoke test itself failed: {last}", missing="a working smoke test"
        )
    failure = outcome.result.get("failure") or {}
    kind, message = str(failure.get("type", "Error")), str(failure.get("message", ""))
    place = (
        f" ({failure['file']}:{failure['line']})"
        if failure.get("file") and failure.get("line")
        else ""
    )
    error = f"{kind}: {message}{place}"
    bases = set(failure.get("bases") or ())
    if kind == "HandedOver":
        said = f"the script replaces itself by another program ({message})"
        return Blame(
            own=False,
            error=said,
            missing="what it hands over to",
            cure="review that program with --script",
        )
    if "ImportError" in bases or failure.get("missing"):
        return _blame_import(failure, error, declared)
    if "SyntaxError" in bases:
        return _blame_syntax(readable, error)
    variable = _required_variable(kind, message, str(failure.get("last")))
    if variable is not None:
        cure = f"set {variable} as the documented command does"
        return Blame(own=False, error=error, missing=VARIABLE + variable, cure=cure)
    if stood_in and ("StandIn" in message or "stand-in" in message):
        return _needs(error, ", ".join(stood_in))
    if "SubprocessError" in bases or (
        "OSError" in bases and str(failure.get("last")).endswith("subprocess.py")
    ):
        return _blame_program(failure, error)
    if "OSError" in bases:
        return _blame_file(failure, error)
    package = _foreign_place(failure, message)
    if package is not None and not bases & {"ValueError", "KeyError"}:
        cure = f"install the version of {package} that the script was written for"
        return Blame(own=False, error=error, missing=package, cure=cure)
    if _NEEDS_DEVICE.search(message) and not bases & {
        "ValueError",
        "KeyError",
        "NameError",
        "IndentationError",
    }:
        return Blame(own=False, error=error, missing="a GPU", cure="import on a machine with a GPU")
    return Blame(
        own=True, error=error, cure="make the script importable: fix the line named in the error"
    )


def _foreign_place(failure: dict[str, Any], message: str) -> str | None:
    """The installed package that raised the failure or lacks what the script asks of it, or
    None.
    """
    raised_in = re.search(r"-packages/([A-Za-z0-9_]+)", str(failure.get("last")))
    if raised_in or "/stand_ins/" in str(failure.get("last")):
        return raised_in[1] if raised_in else "a GPU package"
    lacks = re.match(r"(?:partially initialized )?module '(\w+)[\w.]*' has no attribute", message)
    return lacks[1] if lacks and (installs(lacks[1]) or lacks[1] == "torch") else None


def _required_variable(kind: str, message: str, last: str) -> str | None:
    """The variable whose absence a script complains of: looked up in `os.environ`, or asked for in
    words.
    """
    if kind == "KeyError" and last.endswith(("/os.py", "<frozen os>")):
        return message.strip("'\"")
    asked = re.search(
        r"\b([A-Z][A-Z0-9_]{2,})\b.{0,40}\b(?:required|must be set|not set|is unset|missing)\b",
        message,
    )
    return asked[1] if asked and re.search(r"env|variable|\$", message, re.IGNORECASE) else None


def _blame_end(outcome: Outcome) -> Blame:
    """There was no report: a limit, the sandbox itself, or the script ended the process."""
    if outcome.reason == "sandbox":
        return Blame(
            own=False, error=f"sandbox: {outcome.error or 'no report'}", missing="a working sandbox"
        )
    if outcome.exit is not None and outcome.exit < 0:
        return Blame(
            own=True, error=f"the script's process died of signal {-outcome.exit} while importing"
        )
    return Blame(
        own=True,
        error=f"the script ended its process while being imported (exit code {outcome.exit})",
        cure="do not call os._exit at import",
    )


def _needs(error: str, missing: str) -> Blame:
    names = [name.strip() for name in missing.split(",")]
    known = " ".join(sorted({installs(name) or name for name in names}))
    gpu = any(name.partition(".")[0] in GPU_PACKAGES for name in names)
    cure = f"pip install {known}" + (" on a machine with a GPU" if gpu else "")
    return Blame(own=False, error=error, missing=missing, cure=cure)


def _blame_import(failure: dict[str, Any], error: str, declared: set[str]) -> Blame:
    name = str(failure.get("missing") or "")
    top = name.partition(".")[0]
    listed = {item.replace("-", "_").lower() for item in declared}
    if installs(top) or top.lower() in listed or top == "torch":
        if failure.get("importing") or top == "torch" or "." in name:
            return Blame(
                own=False,
                error=error,
                missing=name,
                cure=f"install the version of {top} that the script wants",
            )
        return _needs(error, name)
    if top in sys.stdlib_module_names:
        return Blame(
            own=False,
            error=error,
            missing=name,
            cure="use the Python that the submission was run with",
        )
    if failure.get("importing") and _installed(top):
        return Blame(
            own=False, error=error, missing=name, cure=f"install the version of {top} it wants"
        )
    return Blame(
        own=True,
        error=error,
        missing=name or None,
        cure=f"ship {top}.py with the submission, or list the package in requirements.txt",
    )


def _installed(top: str) -> bool:
    folders = [Path(path) for path in sys.path if path.endswith("-packages")]
    return any((folder / top).is_dir() or (folder / f"{top}.py").is_file() for folder in folders)


def _blame_syntax(readable: bool, error: str) -> Blame:
    """A text that the audit's own reader can parse (it knows newer grammar) fails only on this
    Python.
    """
    if readable:
        return Blame(
            own=False, error=error, missing="Python 3.12", cure="import with Python 3.12 or later"
        )
    return Blame(own=True, error=error, cure="ship a script that parses")


def _blame_program(failure: dict[str, Any], error: str) -> Blame:
    """Another program that is not here, or that cannot do its work (compile, install, look for a
    GPU) here.
    """
    program = str(failure.get("path") or "") or "a program that it runs"
    return Blame(
        own=False,
        error=error,
        missing=program,
        cure="ship what the program builds, or name it in the README",
    )


def _blame_file(failure: dict[str, Any], error: str) -> Blame:
    path = str(failure.get("path") or "")
    if path and (
        (path.startswith(("/", "~")) and not path.startswith("/submission/")) or _DATA.search(path)
    ):
        return Blame(
            own=False, error=error, missing=path, cure="fetch the data set and tokenizer beforehand"
        )
    if _DATA.search(str(failure.get("message", ""))):
        return Blame(
            own=False,
            error=error,
            missing="data set",
            cure="fetch the data set and tokenizer beforehand",
        )
    return Blame(
        own=True,
        error=error,
        missing=path.removeprefix("/submission/") or None,
        cure="ship the missing file",
    )
