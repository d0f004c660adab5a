"""The documented run command of a submission, read from its README, shell scripts or logs.

A command names the script, sets variables, and may start several processes; of several the one with
the most processes and settings counts, then the first. Nothing is ever run or expanded beyond plain
`NAME=value` words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from niblick.audit.shell import MOST_LINES, launches_of
from niblick.audit.types import RunCommand

_STATED = re.compile(r"(?:^|[\s,;])([A-Z][A-Z0-9_]{2,})=([^\s,;]+)")
_NO_SHELL = frozenset({"python", "py", "json", "c", "cpp", "toml", "yaml", "diff"})
_LONGEST, _LAUNCHERS = 4_000, 5


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
        found = found or [c for text in candidates for c in launches_of(text, name, "README")]
    if metadata:
        for key in ("command", "run_command", "train_command", "cmd"):
            if isinstance(metadata.get(key), str):
                found += launches_of(str(metadata[key]), script, "submission.json")
    yield from sorted(
        found, key=lambda c: (c.world_size or 0, len(c.environment), -found.index(c)), reverse=True
    )
    yield from shell_commands(root, script, readme)


def _launchers(root: Path, script: str) -> list[str]:
    """Other scripts of a folder that name the training script and are short: they start it."""
    out = []
    for path in sorted(root.glob("*.py")):
        plain = path.name != script and path.is_file() and not path.is_symlink()
        if plain and path.stat().st_size < _LONGEST:
            text = path.read_text("utf-8", "replace")
            out += [path.name] if script in text or f"import {script[:-3]}" in text else []
    return out[:_LAUNCHERS]


def shell_commands(root: Path, script: str, readme: str | None) -> Iterator[RunCommand]:
    """The launch of `script` in each shell script of a folder that has one, with what the README
    sets where it starts that.
    """
    blocks = list(_blocks(readme or ""))
    for path in sorted(
        root.glob("*.sh"), key=lambda p: (not p.name.startswith(("run", "train")), p.name)
    ):
        if path.is_file() and path.stat().st_size < 200_000:
            starts = (c for text in blocks for c in launches_of(text, path.name, "README"))
            given = max((start.environment for start in starts), key=len, default={})
            launches = launches_of(path.read_text("utf-8", "replace"), script, path.name, given)
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
    for line in readme.splitlines()[:MOST_LINES]:
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
