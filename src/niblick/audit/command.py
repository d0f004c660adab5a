"""The documented run command of a submission, read from its README, shell scripts or logs.

A command names the script, sets variables, and may start several processes; of several the one with
the most processes and settings counts, then the first. Nothing is ever run or expanded beyond plain
`NAME=value` words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

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
_STATED = re.compile(r"(?:^|[\s,;])([A-Z][A-Z0-9_]{2,})=([^\s,;]+)")
_NO_SHELL = frozenset({"python", "py", "json", "c", "cpp", "toml", "yaml", "diff"})
_LONGEST, _MOST_LINES, _MOST_LAUNCHES = 4_000, 20_000, 40
_LAUNCHERS = 5


def find_command(
    root: Path, script: str, readme: str | None, metadata: dict[str, object] | None
) -> RunCommand | None:
    """The best documented command for `script` (a file name) in folder `root`, or None."""
    return next(documented_commands(root, script, readme, metadata), None)


def documented_commands(
    root: Path, script: str, readme: str | None, metadata: dict[str, object] | None
) -> Iterator[RunCommand]:
    """Every documented command for `script`, the most telling first: README and metadata, then
    shell scripts.
    """
    candidates = list(_blocks(readme)) if readme else []
    found: list[RunCommand] = []
    for name in (script, *_launchers(root, script)):
        found = found or [c for text in candidates for c in _parse(text, name, "README")]
    if metadata:
        for key in ("command", "run_command", "train_command", "cmd"):
            if isinstance(metadata.get(key), str):
                found += _parse(str(metadata[key]), script, "submission.json")
    yield from sorted(
        found, key=lambda c: (c.world_size or 0, len(c.environment), -found.index(c)), reverse=True
    )
    yield from shell_commands(root, script)


def _launchers(root: Path, script: str) -> list[str]:
    """Other scripts of a folder that name the training script and are short: they start it."""
    out = []
    for path in sorted(root.glob("*.py")):
        plain = path.name != script and path.is_file() and not path.is_symlink()
        if plain and path.stat().st_size < _LONGEST:
            text = path.read_text("utf-8", "replace")
            out += [path.name] if script in text or f"import {script[:-3]}" in text else []
    return out[:_LAUNCHERS]


def shell_commands(root: Path, script: str) -> Iterator[RunCommand]:
    """The launch of `script` in each shell script of a folder that has one."""
    for path in sorted(
        root.glob("*.sh"), key=lambda p: (not p.name.startswith(("run", "train")), p.name)
    ):
        if path.is_file() and path.stat().st_size < 200_000:
            launches = _parse(path.read_text("utf-8", "replace"), script, path.name)
            yield from launches[-1:]


def prose_settings(readme: str | None) -> dict[str, str]:
    """Settings a README states as inline code (`NAME=value`), where it states one value only, its
    code blocks included.
    """
    found: dict[str, set[str]] = {}
    blocks, rest = _fenced(readme or "")
    inline = re.findall(r"`([^`\n]+)`", rest)
    for piece in (*inline, *(text for _, text in blocks)):
        for name, value in _STATED.findall(piece):
            found.setdefault(name, set()).add(value)
    stated = {name for piece in inline for name, _ in _STATED.findall(piece)}
    return {name: found[name].pop() for name in stated if len(found[name]) == 1}


def _blocks(readme: str) -> Iterable[str]:
    """Fenced code blocks of a README, then indented and inline commands."""
    blocks, rest = _fenced(readme)
    yield from (text for language, text in blocks if language not in _NO_SHELL)
    yield from re.findall(r"^(?: {4}|\t)(\S.*)$", rest, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", rest)


def _fenced(readme: str) -> tuple[list[tuple[str, str]], str]:
    """The fenced blocks of a README, as (language, text), and its other lines; one pass over the
    lines, so that no text takes longer than its length.
    """
    blocks: list[tuple[str, list[str]]] = []
    rest: list[str] = []
    inside = False
    for line in readme.splitlines()[:_MOST_LINES]:
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            inside = not inside
            if inside:
                language = re.match(r"[\w+-]*", bare.lstrip("`~"))
                blocks.append((language[0].lower() if language else "", []))
        elif inside:
            blocks[-1][1].append(line)
        else:
            rest.append(line)
    return [(language, "\n".join(lines)) for language, lines in blocks], "\n".join(rest)


def _parse(text: str, script: str, source: str) -> list[RunCommand]:
    """The launches of `script` in a block of shell, each with the variables set before or on it."""
    environment: dict[str, str] = {}
    launches: list[RunCommand] = []
    for line in _joined(text):
        if not line or line.startswith("#"):
            continue
        for words in _simple(_words(line)):
            own: dict[str, str] = {}
            rest: list[str] = []
            for word in words:
                match = _ASSIGN.match(word)
                if match and not rest:
                    own[match[1]] = _expand(match[2], {**environment, **own})
                elif word not in _PREFIXES or rest:
                    rest.append(word)
            if not rest:
                environment.update(own)
            elif _LAUNCH.search(line) and any(script in _expand(w, environment) for w in rest):
                launches.append(
                    RunCommand(
                        text=_expand(line, environment)[:2000],
                        environment={**environment, **own},
                        world_size=_processes(line, environment),
                        source=source,
                    )
                )
    return launches[:_MOST_LAUNCHES]


def _joined(text: str) -> Iterator[str]:
    """The lines of a block of shell, those that end in a backslash with what follows; a line of no
    sensible length ends it.
    """
    whole = ""
    for line in text.splitlines()[:_MOST_LINES]:
        bare = line.rstrip()
        whole += bare.removesuffix("\\")
        if len(whole) > _LONGEST:
            return
        if bare.endswith("\\"):
            whole += " "
            continue
        yield whole.strip().lstrip("$> ").strip()
        whole = ""
    yield whole.strip().lstrip("$> ").strip()


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
