"""The launches of a script in a block of shell: which variables are set before each, or on it.

Nothing is run. Conditions of `if` that are plain comparisons of known values decide what is passed
over; of all others both branches are read, one after the other.
"""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping

from niblick.audit.types import RunCommand

_LAUNCH = re.compile(
    r"torchrun|torch\.distributed\.(?:run|launch)|python\d?|accelerate\s+launch|mpirun|uv\s+run"
)
_ASSIGN = re.compile(r"^(?:export\s+|set\s+|-e\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.DOTALL)
_PREFIXES = frozenset({"export", "env", "sudo", "nohup", "time", "set", "do", "then", "exec", "("})
_BETWEEN = frozenset({"", "&&", "||", "|", "&"})
_PROCESSES = re.compile(r"--?nproc[_-]per[_-]node[= ]+(\d+)|--?nproc[= ]+(\d+)")
_DEFAULT = re.compile(r"\$\{([A-Za-z_]\w*):?[-=]([^}]*)\}")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_PROMPT = re.compile(r"^(?:[$>]+\s+)+")
_LONGEST, MOST_LINES, _MOST_LAUNCHES = 8_000, 20_000, 40
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    f"-{name}": getattr(operator, name) for name in ("eq", "ne", "gt", "lt", "ge", "le")
}


def launches_of(
    text: str, script: str, source: str, given: Mapping[str, str] | None = None
) -> list[RunCommand]:
    """The launches of `script` in a block of shell, each with the variables set before or on it;
    `given` are those that the block is started with.
    """
    environment, launches = dict(given or {}), list[RunCommand]()
    branches = _Branches()
    for line in _joined(text):
        if not line or line.startswith("#"):
            continue
        parts = list(_simple(_words(line)))
        for number, words in enumerate(parts):
            rest = branches.enter(words, parts[number + 1 :], environment)
            if not branches.reached:
                continue
            own, rest = _assigned(rest, environment)
            if not rest:
                environment.update(own)
            elif _starts(rest, line, environment, script):
                launches.append(
                    RunCommand(
                        text=_expand(line, environment)[:2000],
                        environment={**environment, **own},
                        world_size=_processes(line, environment),
                        source=source,
                    )
                )
    return launches[:_MOST_LAUNCHES]


def _assigned(words: list[str], environment: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables that a simple command sets for itself, and what it then runs."""
    own: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        match = _ASSIGN.match(word)
        if match and not rest:
            own[match[1]] = _expand(match[2], {**environment, **own})
        elif word not in _PREFIXES or rest:
            rest.append(word)
    return own, rest


def _starts(rest: list[str], line: str, environment: dict[str, str], script: str) -> bool:
    """Whether a simple command runs `script`, with a launcher that is named or a variable."""
    launches = rest[0].startswith("$") or _LAUNCH.search(_expand(line, environment))
    shell = script.endswith(".sh")
    return bool(launches or shell) and any(script in _expand(w, environment) for w in rest)


class _Branches:
    """The `if`s that a line of shell stands in: True and False for branches that are taken and
    passed over, None where that is not known.
    """

    def __init__(self) -> None:
        self._open: list[tuple[bool | None, bool]] = []  # this branch, and whether one was taken

    @property
    def reached(self) -> bool:
        """Whether what comes next is run, as far as known."""
        return all(branch is not False for branch, _ in self._open)

    def enter(
        self, words: list[str], after: list[list[str]], environment: dict[str, str]
    ) -> list[str]:
        """Take note of a keyword at the beginning of a simple command; what follows it."""
        keyword, rest = (words[0], words[1:]) if words else ("", [])
        alone = not after or after[0][:1] in ([], ["then"])
        if keyword == "if":
            found = _holds(rest, environment) if alone else None
            self._open.append((found, found is True))
        elif keyword in {"elif", "else"} and self._open:
            branch, taken = self._open.pop()
            found = (_holds(rest, environment) if alone else None) if keyword == "elif" else True
            if branch is None or (found is None and not taken):
                found = None
            self._open.append((False if taken else found, taken or found is True))
            return rest if keyword == "else" else []
        elif keyword == "fi" and self._open:
            self._open.pop()
        else:
            return words
        return []


def _holds(words: list[str], environment: dict[str, str]) -> bool | None:
    """Whether a plain comparison holds; None where it is none, or a value is not known."""
    inside = [w for w in words if w not in {"[", "]", "[[", "]]", "test", "2>/dev/null"}]
    values = [_DEFAULT.sub(lambda m: environment.get(m[1], m[2]), word) for word in inside]
    values = [_VARIABLE.sub(lambda m: environment.get(m[1], "$"), value) for value in values]
    if len(words) == len(inside) or any("$" in v or "`" in v for v in values):
        return None
    if len(values) == 2 and values[0] in {"-z", "-n"}:
        return (values[1] == "") == (values[0] == "-z")
    if len(values) == 3 and values[1] in _TEXTS:
        return _TEXTS[values[1]](values[0], values[2])
    numbers = len(values) == 3 and all(v.isdecimal() and len(v) < 10 for v in values[::2])
    if numbers and values[1] in _NUMBERS:
        return _NUMBERS[values[1]](int(values[0]), int(values[2]))
    return None


def _joined(text: str) -> Iterator[str]:
    """The lines of a block of shell, those that end in a backslash with what follows; a line of no
    sensible length ends it.
    """
    whole = ""
    for line in text.splitlines()[:MOST_LINES]:
        bare = line.rstrip()
        whole += bare.removesuffix("\\")
        if len(whole) > _LONGEST:
            return
        if bare.endswith("\\"):
            whole += " "
            continue
        yield _PROMPT.sub("", whole.strip())
        whole = ""
    yield _PROMPT.sub("", whole.strip())


def _simple(words: list[str]) -> Iterator[list[str]]:
    """The simple commands of a line: words between `&&`, `||`, `;` and `|`."""
    part: list[str] = []
    for word in words:
        bare = word.rstrip(";")
        if bare and bare not in _BETWEEN:
            part.append(bare)
        if bare in _BETWEEN or bare != word:
            yield part
            part = []
    yield part


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def _expand(value: str, environment: dict[str, str]) -> str:
    """`${NAME:-default}` and `$NAME` replaced where known, to a bounded length: values may double
    at every line.
    """
    value = _DEFAULT.sub(lambda m: environment.get(m[1], m[2]), value.rstrip(";"))[:_LONGEST]
    return _VARIABLE.sub(lambda m: environment.get(m[1], m[0]), value)[:_LONGEST]


def _processes(line: str, environment: dict[str, str]) -> int | None:
    match = _PROCESSES.search(_expand(line, environment))
    if match:
        return int(match[1] or match[2])
    return None if "torchrun" in line else 1
