"""A hook of mkdocs: pages made from the program itself, and Markdown as GitHub reads it.

Guarantees: nothing that it makes is written into docs/; a page in docs/ that the navigation does
not name is added to it; a link to a file of the repository that is no page is an error of the
strict build.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "niblick"
# What of the package the Python pages show, in the order that data meets it.
PACKAGES = (
    "recipe",
    "plan",
    "text",
    "data",
    "components",
    "codecs",
    "artifact",
    "engine",
    "scoring",
    "model",
    "objective",
    "optim",
    "compression",
    "training",
    "evaluation",
    "report",
    "exchange",
    "dashboard",
    "audit",
)
_ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_ITEM = re.compile(r"(\s*)([-*+]|\d+\.)\s")


def on_config(config: Any) -> Any:
    """Add the pages that are made, and guides that the navigation does not name yet."""
    named = set(_named(config.nav))
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    guides += [p.name for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in named]
    api = [{"niblick": "reference/niblick.md"}]
    api += [{f"niblick.{name}": f"reference/{name}.md"} for name in PACKAGES if _modules(name)]
    config.nav += [
        {"Commands": "reference/commands.md"},
        {"Recipe keys": "reference/recipes.md"},
        {"Python": api},
        {"Changes": "changelog.md"},
        {"Contributing": "contributing.md"},
    ]
    return config


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from _named(entry)


def on_files(files: Files, config: Any) -> Files:
    """Make the pages."""
    pages: dict[str, Callable[[], str]] = {
        "reference/commands.md": commands_page,
        "reference/recipes.md": recipes_page,
        "reference/niblick.md": _facade_page,
        **{f"reference/{name}.md": (lambda name=name: _package_page(name)) for name in PACKAGES},
        **{to: (ROOT / name).read_text for name, to in _ROOT_PAGES.items()},
    }
    for path, make in pages.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """GitHub's Markdown as Python-Markdown needs it, and links between root and docs/."""
    if page.file.src_uri in _ROOT_PAGES.values():
        markdown = re.sub(r"\]\(docs/([\w./-]+)", r"](\1", markdown)
    else:
        for name, to in {**_ROOT_PAGES, "README.md": "index.md"}.items():
            markdown = markdown.replace(f"](../{name}", f"]({to}")
    return "\n".join(_spaced(markdown.splitlines()))


def _spaced(lines: list[str]) -> Iterator[str]:
    """Blank lines before lists and tables; the file of a code block as its title."""
    fence, before = "", ""
    for line in lines:
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
            line = re.sub(r"^(\s*`+\w+) file=(\S+).*", r'\1 title="\2"', line)
        elif mark and mark[1] == fence:
            fence = ""
        elif not fence and before.strip() and not before.startswith((" ", "#")):
            listed, was = _ITEM.match(line), _ITEM.match(before)
            table, row = line.startswith("|"), before.startswith("|")
            if (listed and not listed[1] and not was) or (table and not row):
                yield ""
        yield line
        before = line


def commands_page() -> str:
    """The help of every command, as the program prints it."""
    import typer.main

    from niblick.cli import app

    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="niblick", terminal_width=76)
    parts = ["# Commands\n", "What `niblick COMMAND --help` prints.\n", _help(root, context)]
    for name in root.list_commands(context):
        parts += _command(root.get_command(context, name), context, name)
    return "\n".join(parts)


def _command(command: Any, parent: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=76)
    yield f"## {context.command_path}\n"
    yield _help(command, context)
    for inner in getattr(command, "commands", {}):
        yield from _command(command.commands[inner], context, inner)


def _help(command: Any, context: Any) -> str:
    return f"```text\n{command.get_help(context).strip()}\n```\n"


def recipes_page() -> str:
    """Every key that a recipe may hold, from the schema, and the shipped recipes."""
    from niblick.recipe import Recipe

    schema = Recipe.model_json_schema()
    parts = [
        "# Recipe keys\n",
        "A recipe is one TOML file; `--set KEY=VALUE` changes a key, and an unknown key or a wrong"
        " type is an error that names it. A key without a default must be given.\n",
        *_section("", schema, schema["$defs"]),
        "## Shipped recipes\n",
    ]
    for path in sorted(Path(str(resources.files("niblick"))).glob("recipes/*.toml")):
        text = "\n".join(f"    {line}".rstrip() for line in path.read_text("utf-8").splitlines())
        parts.append(f'??? example "{path.stem}"\n\n    ```toml\n{text}\n    ```\n')
    return "\n".join(parts)


def _section(prefix: str, schema: dict[str, Any], defined: dict[str, Any]) -> Iterator[str]:
    yield f"## {prefix.rstrip('.') or 'At the top'}\n"
    yield _prose(schema.get("description", "")) + "\n"
    inner, rows = [], []
    required = schema.get("required", ())
    for key, value in schema.get("properties", {}).items():
        target = _target(value, defined)
        if target is not None and "properties" in target:
            inner.append((f"{prefix}{key}.", target))
            continue
        default = "" if key in required else f"`{_toml(value.get('default'))}`"
        rows.append(f"| `{prefix}{key}` | {_kind(value, defined)} | {default} |")
    if rows:
        yield "\n".join(["| key | type | default |", "|---|---|---|", *rows, ""])
    for name, target in inner:
        yield from _section(name, target, defined)


def _target(value: dict[str, Any], defined: dict[str, Any]) -> dict[str, Any] | None:
    """The table that a value is; of a list of tables the table of its items."""
    reference = value.get("$ref") or value.get("items", {}).get("$ref")
    return defined[reference.rpartition("/")[2]] if reference else None


def _kind(value: dict[str, Any], defined: dict[str, Any]) -> str:
    if "$ref" in value:
        return _kind(defined[value["$ref"].rpartition("/")[2]], defined)
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(each, defined) for each in value["anyOf"]))
    if "enum" in value or "const" in value:
        found = value.get("enum", [value.get("const")])
        return " or ".join(f"`{_toml(each)}`" for each in found)
    if "prefixItems" in value:
        inner = ", ".join(_kind(each, defined) for each in value["prefixItems"])
        return f"list of {len(value['prefixItems'])}: {inner}"
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}), defined)}"
    if value.get("type") == "null":
        return "nothing"
    names = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    kind = str(value.get("type", "value"))
    return names.get(kind, kind) + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    told = [f"{sign} {value[key]:,}" for key, sign in words.items() if key in value]
    return f" ({', '.join(told)})" if told else ""


def _toml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _prose(text: str) -> str:
    return re.sub(r"(?<!`)([*_<])(?!`)", r"\\\1", inspect.cleandoc(text))


def _facade_page() -> str:
    return "# niblick\n\n::: niblick.load\n\n::: niblick.Model\n"


def _modules(name: str) -> list[str]:
    """Modules of a package, its own first, that say something of their own."""
    paths = sorted((SOURCE / name).glob("*.py"))
    return [f"niblick.{name}.{p.stem}" for p in paths if not p.stem.startswith("_")]


def _package_page(name: str) -> str:
    modules = "\n\n".join(f"::: {module}" for module in _modules(name))
    return f"# niblick.{name}\n\n{modules}\n"
