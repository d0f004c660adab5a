"""The launches of a script in a block of shell: which variables are set before each, or on it.

Nothing is run. Conditions of `if` that are plain comparisons of known values decide what is passed
over; of all others both branches are read, one after the other. A value is known no longer once it
was set in such a branch, in a loop, behind `&&` or `||`, or by what is not read here.
"""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from niblick.audit.types import RunCommand
from niblick.audit.words import words

_LAUNCH = re.compile(
    r"torchrun|torch\.distributed\.(?:run|launch)|python\d?|accelerate\s+launch|mpirun|uv\s+run"
)
_ASSIGN = re.compile(r"^(?:-e\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.DOTALL)
_ADDED = re.compile(r"^([A-Za-z_]\w*)\+=")
_PREFIXES = words("export env sudo nohup time set exec declare typeset readonly local")
_SHELLS = words("bash sh zsh source . dash")
_ELSEWHERE = words("echo printf cat cp mv ls chmod rm sed grep head tail git test touch")
_BEGINNINGS = words("then do { ( !")
_OPERATORS = ";&|()<>"
_PROCESSES = re.compile(r"--?nproc[_-]per[_-]node[= ]+(\d+)|--?nproc[= ]+(\d+)")
_DEFAULT = re.compile(r"\$\{([A-Za-z_]\w*)(:?)[-=]([^}]*)\}")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_PROMPT = re.compile(r"^(?:[$>]+\s+)+")
_HEREDOC = re.compile(r"<<-?\s*['\"]?([A-Za-z_]\w*)['\"]?")
_LONGEST, MOST_LINES, _MOST_LAUNCHES = 8_000, 20_000, 40
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    f"-{name}": getattr(operator, name) for name in ("eq", "ne", "gt", "lt", "ge", "le")
}
Parts = list[tuple[str, list[str]]]
"""The simple commands of a line: the operator before each, and its words."""


def launches_of(
    text: str, script: str, source: str, given: Mapping[str, str] | None = None
) -> list[RunCommand]:
    """The launches of `script` in a block of shell, each with the variables set before or on it;
    `given` are those that the block is started with.
    """
    reading = _Reading(script, source, dict(given or {}))
    if not reading.follow(text, decides=True):  # some `if` was not understood
        reading = _Reading(script, source, dict(given or {}))
        reading.follow(text, decides=False)
    return reading.launches[:_MOST_LAUNCHES]


class _Reading:
    """A block as it is read: the variables so far, those whose values are `unsure`, and the `if`s
    and loops that stand open: True and False for branches that are taken and passed over, None
    where that is not known.
    """

    def __init__(self, script: str, source: str, environment: dict[str, str]) -> None:
        self.script, self.source, self.environment = script, source, environment
        self.launches: list[RunCommand] = []
        self._unsure: set[str] = set()
        self._all_unsure = False
        self._open: list[tuple[bool | None, bool]] = []  # this branch, and whether one was taken
        self._inside = 0  # loops, functions and `case`s that stand open
        self._decides = True

    def follow(self, text: str, *, decides: bool) -> bool:
        """Read a block; whether every `if` in it was closed."""
        self._decides = decides
        lines = [(line, _simple(line)) for line in _joined(text)]
        for (line, parts), (_, following) in pairwise([*lines, ("", [])]):
            after = [words for _, words in following]
            for number, (joint, command) in enumerate(parts):
                rest = [words for _, words in parts[number + 1 :]] or after
                if command[:1] == ["exit"] and not (self._open or self._inside or joint):
                    return True
                self._command(joint, command, rest, line)
        return not self._open

    def _command(self, joint: str, command: list[str], after: list[list[str]], line: str) -> None:
        command = self._keywords(command, after)
        if any(branch is False for branch, _ in self._open) or not command:
            return
        own, rest = self._assigned(command)
        if not rest:
            self.environment.update(own)
            sure = not (self._inside or joint) and all(b for b, _ in self._open)
            self._unsure = self._unsure - own.keys() if sure else self._unsure | own.keys()
        elif _starts(rest, self.script, self.environment):
            self.launches.append(
                RunCommand(
                    text=_expand(line, self.environment)[:2000],
                    environment={**self.environment, **own},
                    world_size=_processes(line, self.environment),
                    source=self.source,
                )
            )
        else:
            self._disturbed(rest)

    def _disturbed(self, rest: list[str]) -> None:
        """Take note of commands that set variables in other ways."""
        if rest[0] in {"source", "."}:
            self._all_unsure = True
        elif rest[0] in {"read", "unset", "let", "mapfile", "eval"}:
            self._unsure.update(rest)
            for name in rest if rest[0] == "unset" else ():
                self.environment.pop(name, None)
        self._unsure.update(m[1] for word in rest if (m := _ADDED.match(word)))

    def _assigned(self, command: list[str]) -> tuple[dict[str, str], list[str]]:
        """The variables that a simple command sets for itself, and what it then runs."""
        own: dict[str, str] = {}
        rest: list[str] = []
        prefixed = False
        for word in command:
            match = _ASSIGN.match(word)
            if match and not rest:
                own[match[1]] = _expand(match[2], {**self.environment, **own})
            elif rest or not (word in _PREFIXES or (prefixed and word.startswith("-"))):
                rest.append(word)
            else:
                prefixed = True
        return own, rest

    def _keywords(self, command: list[str], after: list[list[str]]) -> list[str]:
        """What is left of a simple command behind the keywords at its beginning."""
        keyword, rest = (command[0], command[1:]) if command else ("", [])
        alone = bool(after) and after[0][:1] == ["then"]
        if keyword in _BEGINNINGS:
            self._inside += keyword == "{"
            return self._keywords(rest, after)
        if keyword in {"for", "while", "until", "select", "case"}:
            self._inside += 1
            self._unsure.update(rest[:1])
        elif keyword in {"done", "}", "esac"}:
            self._inside = max(self._inside - 1, 0)
        elif keyword == "if":
            found = self._holds(rest) if alone else None
            self._open.append((found, found is True))
        elif keyword in {"elif", "else"} and self._open:
            branch, taken = self._open.pop()
            found = True if keyword == "else" else self._holds(rest) if alone else None
            if branch is None or (found is None and not taken):
                found = None
            self._open.append((False if taken else found, taken or found is True))
            return self._keywords(rest, after) if keyword == "else" else []
        elif keyword == "fi" and self._open:
            self._open.pop()
        else:
            return command
        return []

    def _holds(self, condition: list[str]) -> bool | None:
        """Whether a plain comparison holds; None where it is none, or a value is not known."""
        quiet = condition[-2:] == ["2", "/dev/null"]  # as in `2>/dev/null`
        said = condition[:-2] if quiet else condition
        inside = [w for w in said if w not in {"[", "]", "[[", "]]", "test"}]
        names = [
            m[1] for word in inside for m in (*_DEFAULT.finditer(word), *_VARIABLE.finditer(word))
        ]
        plain = len(said) > len(inside) and self._decides and not self._all_unsure
        if not plain or self._unsure & set(names) or any("`" in word for word in inside):
            return None
        values = [_expand(word, self.environment) for word in inside]
        if any("$" in value for value in values):
            return None
        if len(values) == 2 and values[0] in {"-z", "-n"}:
            return (values[1] == "") == (values[0] == "-z")
        if len(values) == 3 and values[1] in _TEXTS:
            pattern = "[[" in condition and re.search(r"[*?\[]", values[2])
            return None if pattern else _TEXTS[values[1]](values[0], values[2])
        numbers = len(values) == 3 and all(v.isdecimal() and len(v) < 10 for v in values[::2])
        if numbers and values[1] in _NUMBERS:
            return _NUMBERS[values[1]](int(values[0]), int(values[2]))
        return None


def _starts(rest: list[str], script: str, environment: dict[str, str]) -> bool:
    """Whether a simple command runs `script`, with a launcher that is named or a variable."""
    told = [_expand(word, environment) for word in rest]
    first = told[0].rpartition("/")[2]
    named = any(part.rpartition("/")[2] == script for word in told for part in word.split())
    if not named or first in _ELSEWHERE:
        return False
    if script.endswith(".sh"):
        return first in _SHELLS or first == script
    return rest[0].startswith("$") or bool(_LAUNCH.search(" ".join(told)))


def _joined(text: str) -> Iterator[str]:
    """The lines of a block of shell without comments and here-documents, those that end in a
    backslash or within quotes with what follows; a line of no sensible length ends it.
    """
    whole, ends = "", ""
    for line in text.replace("\r\n", "\n").split("\n")[:MOST_LINES]:
        bare = line.rstrip()
        if ends or (not whole and bare.lstrip().startswith("#")):
            ends = "" if bare.strip() == ends else ends
            continue
        whole += bare.removesuffix("\\")
        if len(whole) > _LONGEST:
            return
        if bare.endswith("\\"):
            whole += " "
            continue
        if not _closed(whole):
            whole += "\n"
            continue
        found = _HEREDOC.search(whole)
        ends = found[1] if found else ""
        yield _PROMPT.sub("", whole.strip())
        whole = ""
    yield from (_PROMPT.sub("", line.strip()) for line in whole.split("\n"))


def _closed(line: str) -> bool:
    """Whether every quote of a line is closed."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def _simple(line: str) -> Parts:
    """The simple commands of a line, each with the `&&` or `||` before it, if any."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    try:
        found = list(lexer)
    except ValueError:
        found = line.split()
    parts: Parts = [("", [])]
    for word in found:
        if word and not word.strip("<>"):
            continue  # where its output goes
        if word and not word.strip(_OPERATORS):
            parts.append((word if word in {"&&", "||"} else "", []))
        else:
            parts[-1][1].append(word)
    return [part for part in parts if part[1]]


def _expand(value: str, environment: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `$NAME` replaced where known, to a bounded length: values may double
    at every line.
    """

    def default(match: re.Match[str]) -> str:
        found = environment.get(match[1])
        return match[3] if found is None or (match[2] and not found) else found

    value = _DEFAULT.sub(default, value.rstrip(";"))[:_LONGEST]
    return _VARIABLE.sub(lambda m: environment.get(m[1], m[0]), value)[:_LONGEST]


def _processes(line: str, environment: dict[str, str]) -> int | None:
    match = _PROCESSES.search(_expand(line, environment))
    if match:
        return int(match[1] or match[2])
    return None if "torchrun" in line else 1
