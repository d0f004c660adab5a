"""Finds the model a script would train, in its text and its imported module, and builds it.

The construction is taken from the script's own call, with the arguments evaluated in the module
and, for local names, from the assignments they depend on. Nothing else of the enclosing function is
run.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from niblick.audit.unpack import parse
from niblick.audit.words import ordered

_SETTINGS = ordered("hyperparameters hparams hyperparams config args settings hp cfg h")
_DEPTH = 12


@dataclass(frozen=True, kw_only=True)
class Site:
    """One call in the text that constructs a model class, and the function it stands in (None: top
    level).
    """

    call: ast.Call
    name: str
    function: ast.FunctionDef | None


def settings_of(module: ModuleType) -> Any:
    """The script's settings object: an instance of its hyperparameter class, or the class, or
    None.
    """
    named = {
        name.lower(): value for name, value in vars(module).items() if not name.startswith("__")
    }
    for wanted in _SETTINGS:
        for name, value in named.items():
            fits = name == wanted or (name.startswith(wanted) and len(wanted) > 3)
            if (
                not fits
                or isinstance(value, ModuleType)
                or (callable(value) and not inspect.isclass(value))
            ):
                continue
            if inspect.isclass(value):
                with contextlib.suppress(BaseException):
                    return value()
            return value
    return None


def sites(text: str, module: ModuleType) -> list[Site]:
    """Constructions of the module's own `nn.Module` classes outside those classes, in textual
    order.
    """
    import torch

    own = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, torch.nn.Module)
        and not value.__module__.startswith("torch.")
    }
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
        return list(_walk(parse(text), own, None))
    return []


def program_text(module: ModuleType, texts: list[str]) -> str:
    """The text, of several, in which most of the module's models are constructed."""
    return max(texts, key=lambda text: len(sites(text, module)))


def _walk(node: ast.AST, own: set[str], function: ast.FunctionDef | None) -> Iterator[Site]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and child.name in own:
            continue
        inner = child if isinstance(child, ast.FunctionDef) else function
        if (
            isinstance(child, ast.Call)
            and isinstance(child.func, ast.Name)
            and child.func.id in own
        ):
            yield Site(call=child, name=child.func.id, function=function)
        yield from _walk(child, own, inner)


def build(site: Site, module: ModuleType, *, device: str, settings: Any = None) -> Any:
    """The model of `site` on `device` ("meta", "cpu", or "empty": on the CPU, its matrices not
    initialised).

    Raises whatever the construction raises.
    """
    import torch

    scope = Scope(module, settings, site.function, site.call.lineno)
    if device == "empty":
        with _without_initialisation(torch):
            return scope.value(site.call)
    with torch.device(device):
        return scope.value(site.call)


@contextlib.contextmanager
def _without_initialisation(torch: Any) -> Iterator[None]:
    """Skips torch's initialisers of all but vectors: they cost most of the time of building a model
    just to count it.
    """
    init = torch.nn.init
    plain = {
        name: value for name, value in vars(init).items() if name.endswith("_") and callable(value)
    }
    try:
        for name, value in plain.items():
            if not name.startswith("_"):
                setattr(init, name, _of_vectors(value))
        yield
    finally:
        for name, value in plain.items():
            setattr(init, name, value)


def _of_vectors(initialise: Callable[..., Any]) -> Callable[..., Any]:
    """The initialiser, which leaves tensors of more than one dimension as they are."""
    return lambda tensor, *args, **kwargs: (
        tensor if tensor.dim() > 1 else initialise(tensor, *args, **kwargs)
    )


def models(
    text: str, module: ModuleType, *, device: str, settings: Any = None
) -> list[tuple[Site, Any]]:
    """Every distinct class that can be built, largest first, each by its first construction that
    works.
    """
    built: dict[str, tuple[Site, Any]] = {}
    for site in sites(text, module):
        if site.name not in built:
            with contextlib.suppress(BaseException):
                built[site.name] = (site, build(site, module, device=device, settings=settings))
    return sorted(built.values(), key=lambda pair: -parameters(pair[1]))


def parameters(model: Any) -> int:
    """Number of trainable numbers, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


class Scope(dict[str, Any]):
    """Names as a place in a function sees them: the module's, settings for a parameter, then
    assignments above.
    """

    def __init__(
        self, module: ModuleType, settings: Any, function: ast.FunctionDef | None, line: int
    ) -> None:
        super().__init__(vars(module))
        self._settings = settings if settings is not None else settings_of(module)
        self._assigned: dict[str, ast.expr] = {}
        self._arguments: set[str] = set()
        self._depth = 0
        if function is not None:
            arguments = function.args
            self._arguments = {each.arg for each in (*arguments.args, *arguments.kwonlyargs)}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and node.lineno <= line:
                    self._note(node.targets[0], node.value)
                elif isinstance(node, ast.AnnAssign) and node.value is not None:
                    self._note(node.target, node.value)
            if settings is not None:
                self._replace_settings(module)

    def _note(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._assigned.setdefault(target.id, value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for left, right in zip(target.elts, value.elts, strict=False):
                self._note(left, right)

    def _replace_settings(self, module: ModuleType) -> None:
        """A settings object given by the caller stands for whatever the function made of the
        class.
        """
        kind = type(self._settings)
        for name, value in list(self._assigned.items()):
            called = value.func if isinstance(value, ast.Call) else None
            if isinstance(called, ast.Name) and getattr(module, called.id, None) is kind:
                self._arguments.add(name)
                del self._assigned[name]

    def value(self, node: ast.expr) -> Any:
        """Evaluates an expression of the script."""
        expression = ast.fix_missing_locations(ast.Expression(node))
        return eval(compile(expression, "<construction>", "eval"), {}, self)

    def __missing__(self, name: str) -> Any:
        import builtins

        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in self._assigned and self._depth < _DEPTH:
            self._depth += 1
            try:
                self[name] = self.value(self._assigned[name])
            finally:
                self._depth -= 1
            return self[name]
        if name in self._arguments or name.lower() in _SETTINGS:
            return self._settings
        raise NameError(name)
