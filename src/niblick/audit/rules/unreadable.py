"""Code that would run and cannot be read: its text is not in the folder, or not in a form that
reading undoes.
"""

from __future__ import annotations

import ast

from niblick.audit.rules.case import Case
from niblick.audit.rules.program import DOWNLOADS, NETWORK, Program, constant
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words
from niblick.limits import quoted

RULE = "unreadable"
_RUNS = words(
    "exec eval builtins.exec builtins.eval runpy.run_path marshal.loads types.FunctionType"
    " types.CodeType dill.loads cloudpickle.loads dill.load cloudpickle.load"
)
_ALWAYS = words(
    "marshal.loads types.FunctionType types.CodeType dill.loads cloudpickle.loads dill.load"
    " cloudpickle.load"
)
_HOOKS = frozenset({"sys.meta_path", "sys.path_hooks"})
_ARCHIVES = (".zip", ".whl", ".egg", ".pyz")
_PLAIN = words(
    "format join strip replace dedent str repr int float len lower upper splitlines getsource"
    " compile get getenv split range enumerate zip items sorted exec eval append"
)
_SHORT = 400


@rule("unreadable", of_text=True)
def check(case: Case) -> list[Finding]:
    """One finding per call that would run text which this review has not read."""
    if case.tree is None or case.submission.source is None:
        return []
    program, reach = case.program, Reach(case)
    known = dict(case.submission.source.resolved)
    left: dict[str, list[ast.Call]] = {}
    for name, call in program.calls():
        if name in _RUNS:
            left.setdefault(ast.unparse(call), []).append(call)
    out = []
    for text, calls in left.items():
        for call in calls if len(calls) > known.get(text, 0) else []:
            why = _unread(case, program, call)
            if why and (program.in_method(call) or reach.possible(program.around(call))):
                out.append(
                    case.finding(
                        RULE,
                        Severity.WARNING,
                        f"{program.around(call)} runs code that this review could not read: {why}.",
                        verdict="hold_unclear",
                        pointer="record",
                        line=call.lineno,
                        end=call.end_lineno,
                        cure=(
                            "Ship that code as plain text in the folder, or packed by lzma, zlib or"
                            " base85 alone."
                        ),
                    )
                )
    return [*out[:10], *_coded(case), *_followed(case), *_hooks(case, program)]


def _followed(case: Case) -> list[Finding]:
    """Code that the engine saw run under another name, or come out of a pickle."""
    return [
        _hold(
            case,
            f"{c.where.function} runs code that this review could not read: {c.detail}.",
            c.where.line,
        )
        for c in case.trace.calls
        if c.name == "unread-code"
    ][:3]


def _coded(case: Case) -> list[Finding]:
    """Source text in a coding that shows a reader something else than Python runs."""
    layers = case.submission.source.layers if case.submission.source else ()
    return [
        _hold(
            case,
            f"The source declares the coding {layer.partition(':')[2]}: what an editor shows"
            " need not be what Python runs.",
            1,
        )
        for layer in layers
        if layer.startswith("coding:")
    ]


def _hooks(case: Case, program: Program) -> list[Finding]:
    """An importer of the script's own whose modules were not found in it."""
    if case.carried:
        return []
    for node in ast.walk(program.tree):
        if isinstance(node, ast.Call) and (archive := _archive(node)):
            said = f"The script puts {archive} among the places that modules come from."
            return [_hold(case, said, node.lineno)]
        if isinstance(node, ast.Attribute) and program.full_name(node) in _HOOKS:
            return [
                _hold(
                    case,
                    f"The script puts an importer of its own into {ast.unparse(node)}, and"
                    " the modules that it makes were not found.",
                    node.lineno,
                )
            ]
    return []


def _archive(call: ast.Call) -> str | None:
    """The archive that a call adds to sys.path, by a name in the call."""
    if not ast.unparse(call.func).startswith("sys.path."):
        return None
    said = (n.value for n in ast.walk(call) if isinstance(n, ast.Constant))
    return next((quoted(each) for each in said if str(each).endswith(_ARCHIVES)), None)


def _hold(case: Case, evidence: str, line: int) -> Finding:
    return case.finding(
        RULE,
        Severity.WARNING,
        evidence,
        verdict="hold_unclear",
        pointer="record",
        line=line,
        cure="Ship that code as plain text in the folder.",
    )


def _unread(case: Case, program: Program, call: ast.Call) -> str:
    """What keeps the text of a call that runs text from being read; empty where it is plain to
    see.
    """
    name = program.full_name(call.func)
    if name in _ALWAYS:
        return f"{name} makes code from data that only running it would show"
    if not call.args:
        return ""
    if name == "runpy.run_path":
        path = constant(call.args[0], str)
        return (
            ""
            if any(c.name == path for c in case.submission.context)
            else f"it is read from {str(path)[:80]!r}, which is not in the folder"
        )
    written = 0
    for part in program.origins(call.args[0]):
        if isinstance(part, ast.Call):
            why = _opaque(program, part)
            if why:
                return why
        text = constant(part, str)
        if isinstance(text, str) and ("\n" in text or len(text) > 60):
            written += len(text)
        if (
            isinstance(part, ast.Name)
            and part.id not in program.defined
            and _handed_in(program, call, part.id)
        ):
            return f"its text comes in as {part.id}, from where the audit did not see"
        if isinstance(part, ast.Attribute) and _unset(program, call.args[0], part):
            return f"its text is kept in {ast.unparse(part)[:60]}, which nothing here sets"
    return f"{written} characters of text that are built while it runs" if written > _SHORT else ""


def _unset(program: Program, whole: ast.expr, attribute: ast.Attribute) -> bool:
    """Whether an attribute is text of unknown origin: no function of a call (judged as a call), no
    setting, never set.
    """
    if attribute.attr in _PLAIN | program.defined.keys() | {"environ"}:
        return False
    return not any(isinstance(n, ast.Call) and n.func is attribute for n in program.origins(whole))


def _opaque(program: Program, call: ast.Call) -> str:
    name = program.full_name(call.func)
    tail = name.removesuffix("()").rpartition(".")[2]
    if tail in _PLAIN or name.startswith("os.environ"):
        return ""
    if name.startswith(NETWORK) or tail in DOWNLOADS:
        return f"it is fetched from the network by {name}"
    if tail in {"open", "read_text", "read_bytes", "read"}:
        texts = [constant(p, str) for p in program.origins(call) if isinstance(p, ast.Constant)]
        names = [t for t in texts if isinstance(t, str) and ("." in t or "/" in t)]
        if any(isinstance(p, ast.Name) and p.id == "__file__" for p in program.origins(call)):
            return ""
        return (
            f"it is read from {names[0][:80]!r}, a file whose text is not in the folder"
            if names
            else "it is read from a file that the script does not name"
        )
    return f"it is the result of {name[:80] or 'a call'}, which reading cannot undo"


def _handed_in(program: Program, call: ast.Call, name: str) -> bool:
    """Whether a name is a parameter of the function around `call` that no visible call fills with a
    literal.
    """
    function = program.around(call)
    for node in program.functions.get(function, []):
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if name in names:
            place = names.index(name)
            given = [
                (
                    c.args[place]
                    if len(c.args) > place
                    else next((k.value for k in c.keywords if k.arg == name), None)
                )
                for called, c in program.calls()
                if called.rpartition(".")[2] == function
            ]
            return not given or any(
                g is not None
                and any(isinstance(p, ast.Call) and _opaque(program, p) for p in program.origins(g))
                for g in given
            )
    return False
