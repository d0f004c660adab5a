"""One script from the library's own modules: only those that an entry module reaches, minified and
compressed.

The script imports the bundled modules from memory, whether or not this package is installed, and
reads nothing of it from disk.
"""

from __future__ import annotations

import ast
import base64
import json
import lzma
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import niblick
from niblick.extras import needs

PACKAGE = "niblick"
_ROOT = Path(niblick.__file__).parent
_OPTIONAL = {"pyarrow", "huggingface_hub", "pyppmd"}

_SCRIPT = '''"""{title}

Train, pack and score:   torchrun --standalone --nproc_per_node=1 train_gpt.py [--data DIR]
Score the artifact here: python train_gpt.py --eval-only [--data DIR]

The library's modules are bundled below (minified, LZMA, base85) and imported from memory.
"""
import base64, json, lzma, os, sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader

SETTINGS = json.loads(r"""{settings}""")
MODULES = json.loads(lzma.decompress(base64.b85decode("""{payload}""")))


class Bundle(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        if name not in MODULES:
            return None
        package = any(module.startswith(name + ".") for module in MODULES)
        return spec_from_loader(name, self, is_package=package)

    def exec_module(self, module):
        exec(compile(MODULES[module.__name__], module.__name__, "exec"), module.__dict__)


sys.meta_path.insert(0, Bundle())

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    from {entry} import main

    sys.exit(main(SETTINGS, sys.argv[1:], lambda line: print(line, flush=True)))
'''


def reachable(entry: str) -> dict[str, str]:
    """Module name -> source of every module of this package that `entry` imports, directly or
    not.
    """
    found: dict[str, str] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in found or path is None:
            continue
        found[name] = path.read_text("utf-8")
        waiting += [
            name.rpartition(".")[0],
            # What the package itself offers is for its users.
            *(
                module
                for module in _imports(found[name], lazy=name != PACKAGE)
                if module.split(".")[0] == PACKAGE
            ),
        ]
    return dict(sorted(found.items()))


def requirements(modules: dict[str, str]) -> list[str]:
    """Pinned distributions that the modules import, optional extras left out, in the form of
    requirements.txt.
    """
    names = {module.split(".")[0] for text in modules.values() for module in _imports(text)}
    known = metadata.packages_distributions()
    wanted = {
        known[name][0] for name in names if name in known and name not in _OPTIONAL | {PACKAGE}
    }
    return [
        f"{name}=={metadata.version(name).partition('+')[0]}"
        for name in sorted(wanted, key=str.lower)
    ]


def bundle_script(entry: str, settings: dict[str, Any], title: str) -> tuple[str, list[str]]:
    """The script that calls `entry`'s `main(settings, arguments, say)`, and its requirements."""
    modules = reachable(entry)
    small = {name: _minified(name, text) for name, text in modules.items()}
    payload = lzma.compress(
        json.dumps(small, ensure_ascii=False).encode(), preset=9 | lzma.PRESET_EXTREME
    )
    script = _SCRIPT.format(
        title=title,
        entry=entry,
        settings=json.dumps(settings, separators=(",", ":")),
        payload=base64.b85encode(payload).decode(),
    )
    return script, requirements(modules)


def _path(name: str) -> Path | None:
    base = _ROOT.joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if name and path.is_file():
            return path
    return None


def _imports(text: str, *, lazy: bool = False) -> Iterator[str]:
    """Modules a source may import at run time, `from x import y` read as both x and x.y;
    typing-only ones left out, those of `lazily` taken where `lazy`.
    """
    tree = ast.parse(text)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazily" and lazy:
            values = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
            yield from (v for v in values if isinstance(v, str) and v.startswith(f"{PACKAGE}."))


def _minified(name: str, text: str) -> str:
    with needs("export to submission", "export"):
        import python_minifier
    annotations = python_minifier.RemoveAnnotationsOptions(
        remove_variable_annotations=False,
        remove_return_annotations=True,
        remove_argument_annotations=False,
        remove_class_attribute_annotations=False,
    )
    small: str = python_minifier.minify(
        text,
        filename=name,
        remove_literal_statements=True,
        rename_globals=False,
        hoist_literals=False,
        remove_annotations=annotations,
    )
    return small
