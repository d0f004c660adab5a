"""Modules and files that the script needs, that are part of the submission, and that are not in the
folder.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from niblick.audit.orders import declared_packages, folders
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Program, constant
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.stand_ins.catalog import installs
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "missing-part"
_KNOWN = frozenset({*sys.stdlib_module_names, "torch", "__main__"})
_DATA = re.compile(
    r"\.bin$|fineweb|data|token|shard|cache|/proc|/sys|\.model$|\.vocab$|\.log$|\.ptz?$|out|ckpt|checkpoint",
    re.IGNORECASE,
)
_NATIVE = (".so", ".pyd", ".pyc")


@rule("missing-parts")
def check(case: Case) -> list[Finding]:
    """A breach for a module that importing the script cannot do without; findings for what else is
    missing.
    """
    if case.tree is None or case.submission.script is None:
        return []
    program = case.program
    return [*_modules(case, program), *_unread(case), *_files(case, program)]


def _modules(case: Case, program: Program) -> Iterator[Finding]:
    have, reach, told = _available(case), Reach(case), set()
    for node, guarded in _imports(case.tree, False):
        for name in _tops(node):
            if name in told or name in have or guarded:
                continue
            place = program.around(node)
            if place != "<module>" and not reach.possible(place):
                continue
            told.add(name)
            sure = place == "<module>" and not _inside_package(node) and _used(case, node)
            yield _absent(case, name, node, sure and not _alone(case))


def _unread(case: Case) -> Iterator[Finding]:
    """Modules that lie in the folder, are imported and were not read: too large, too deep, compiled
    or in the place of a known package.
    """
    assert case.submission.script is not None
    script = case.submission.script
    root, read = script.parent, {script.name, *(file for file, _ in case.modules)}
    trees = (case.tree, *(tree for _, tree in case.modules))
    nodes = (n for tree in trees if tree is not None for n in ast.walk(tree))
    for node in nodes:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in _whole_names(node):
            base = root.joinpath(*name.split("."))
            found = [base.with_name(f"{base.name}.py"), base / "__init__.py"]
            found += [p for end in _NATIVE for p in base.parent.glob(f"{base.name}.*{end[1:]}")]
            for path in found:
                if path.is_file() and path.relative_to(root).as_posix() not in read:
                    said = f"{path.relative_to(root)}, which was not read"
                    cure = "Ship it as plain source of a size that can be read."
                    yield _held(case, said, node.lineno, cure)
                    return


def _whole_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that an import may load, by their whole names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.module or node.level:
        return []
    return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def _held(case: Case, said: str, line: int, cure: str) -> Finding:
    return case.finding(
        "unreadable",
        Severity.WARNING,
        f"The script imports {said}.",
        verdict="hold_unclear",
        pointer="record",
        line=line,
        cure=cure,
    )


def _alone(case: Case) -> bool:
    """Whether the script is all that there is: what lies beside it in its repository is not
    known.
    """
    submission = case.submission
    return not (submission.context or submission.readme or submission.metadata)


def _inside_package(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import names a part of a package, which a surrounding repository may hold."""
    names = (
        [alias.name for alias in node.names]
        if isinstance(node, ast.Import)
        else [node.module or ""]
    )
    return any("." in name for name in names)


def _used(case: Case, node: ast.Import | ast.ImportFrom) -> bool:
    """Whether the script may do anything with what it imports: names that it takes out of a module
    and never reads are left over, and the module may lie in the repository around.
    """
    names = {alias.asname or alias.name for alias in node.names}
    read = {n.id for n in case.nodes if isinstance(n, ast.Name)}
    return isinstance(node, ast.Import) or "*" in names or bool(names & read)


def _absent(case: Case, name: str, node: ast.stmt, at_import: bool) -> Finding:
    root = case.submission.script.parent if case.submission.script else case.submission.root
    native = next((p.name for end in _NATIVE for p in sorted(root.glob(f"{name}*{end}"))), None)
    if native is not None:
        said = f"{native}, compiled code that reading cannot show"
        return _held(case, said, node.lineno, "Ship the source it was built from.")
    said = (
        f"The script imports {name}, which is no module of the folder, no known package and in no"
        " requirements.txt."
    )
    return case.finding(
        RULE,
        Severity.BREACH if at_import else Severity.WARNING,
        said,
        verdict="import_fail" if at_import else None,
        pointer="record",
        line=node.lineno,
        cure=f"Ship {name}.py with the submission, or list the package in requirements.txt.",
    )


def _available(case: Case) -> set[str]:
    """Top-level names that an import may find: the folder's, the carried ones, and declared
    packages.
    """
    submission = case.submission
    names = {PurePosixPath(path).parts[0].removesuffix(".py") for path in case.carried}
    for folder in {submission.root, *folders(submission), *(p.parent for p in submission.context)}:
        names |= {p.stem for p in folder.glob("*.py")} | {
            p.name for p in folder.iterdir() if p.is_dir()
        }
    declared = {name.replace("-", "_").lower() for name in declared_packages(*folders(submission))}
    return _Names(names, declared)


class _Names(set[str]):
    """Names at hand; packages are at hand by catalogue or declaration."""

    def __init__(self, names: set[str], declared: set[str]) -> None:
        super().__init__(names)
        self.declared = declared

    def __contains__(self, name: object) -> bool:
        text = str(name)
        return (
            super().__contains__(text)
            or text in _KNOWN
            or bool(installs(text))
            or text.lower() in self.declared
        )


def _imports(
    node: ast.AST | None, guarded: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import, and whether its failure is provided for or its condition unknown."""
    for child in ast.iter_child_nodes(node) if node is not None else ():
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, guarded
        else:
            inside = (
                guarded
                or (isinstance(child, ast.Try) and bool(child.handlers))
                or isinstance(child, (ast.If, ast.With))
            )
            yield from _imports(child, inside)


def _tops(node: ast.Import | ast.ImportFrom) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in _whole_names(node)))


def _files(case: Case, program: Program) -> Iterator[Finding]:
    """Small files of the submission's own that it reads by a fixed name, never writes, and does not
    ship.
    """
    reach = Reach(case)
    read: dict[str, ast.Call] = {}
    written: set[str] = set()
    for name, call in program.calls():
        path = constant(call.args[0], str) if call.args else None
        if not isinstance(path, str) or not re.fullmatch(
            r"(?:\./)?[\w.\-]+(?:/[\w.\-]+)*\.\w{1,8}", path
        ):
            continue
        mode = (
            constant(call.args[1], str)
            if len(call.args) > 1
            else next((constant(k.value, str) for k in call.keywords if k.arg == "mode"), "r")
        )
        tail = name.rpartition(".")[2]
        if tail in words("open load loadtxt fromfile read_text read_bytes") and not re.search(
            "[wax]", str(mode or "r")
        ):
            read.setdefault(path.removeprefix("./"), call)
        else:
            written.add(path.removeprefix("./"))
    for path, call in read.items():
        if (
            _DATA.search(path)
            or path in written
            or _beside(case, path)
            or not reach.possible(program.around(call))
        ):
            continue
        yield case.finding(
            RULE,
            Severity.WARNING,
            f"The script reads {path}, which is not in the folder.",
            pointer="record",
            line=call.lineno,
            cure="Ship the file with the submission; it counts towards the size.",
        )


def _beside(case: Case, path: str) -> bool:
    script = case.submission.script
    return any(
        (folder / Path(path)).exists()
        for folder in {case.submission.root, script.parent if script else case.submission.root}
    )
