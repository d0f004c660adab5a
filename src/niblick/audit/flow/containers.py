"""Methods of containers, paths, files and parsed arguments."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath
from typing import Any

from niblick.audit.flow.access_index import as_bytes
from niblick.audit.flow.boxes import STREAM, Box, collect, snapshot
from niblick.audit.flow.library import DefaultDict, Library
from niblick.audit.flow.objects import Namespace
from niblick.audit.flow.paths import glob_paths, path_kind


class Containers(Library):
    """Methods of containers, paths, files and parsed arguments."""

    def container_call(
        self, holder: Any, name: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        if isinstance(holder, dict):
            return self.dict_call(holder, name, args, named, node)
        if isinstance(holder, list) and name in {"append", "extend", "insert", "appendleft", "add"}:
            if len(holder) < 200_000:
                if name == "extend":
                    holder.extend(self.iterate(args[0], None))
                elif name == "insert":
                    holder.insert(args[0] if isinstance(args[0], int) else 0, args[1])
                else:
                    holder.append(args[0] if args else None)
            return None
        if isinstance(holder, set) and name in {"add", "update"}:
            self.keep(holder, *args)
        if isinstance(holder, set) and name == "add":
            if args and isinstance(args[0], (int, str, float, tuple)) and not collect(args[0]):
                holder.add(args[0])
            return None
        if isinstance(holder, str) and name == "join":
            items = self.iterate(args[0], None)
            return holder.join(items) if all(isinstance(i, str) for i in items) else "?"
        if isinstance(holder, str) and name == "format":
            self.shown_all([*args, *named.values()], holder)
            return "?"
        if isinstance(holder, list) and name in {"sort", "reverse", "clear"}:
            if name != "sort" or all(isinstance(i, (int, str, float)) for i in holder):
                getattr(holder, name)(
                    **{k: v for k, v in named.items() if k == "reverse" and isinstance(v, bool)}
                )
            return None
        if name == "popleft" and isinstance(holder, list):
            return holder.pop(0) if holder else Box()
        kinds = (int, str, float, bytes, list, tuple, dict, set, type(None))
        method = None if name.startswith("_") else getattr(holder, name, None)
        if method is None or not all(isinstance(a, kinds) for a in args):
            return self.opaque([holder, *args], named, node)
        try:
            return method(*args)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, UnicodeError):
            return Box()

    def dict_call(
        self,
        holder: dict[Any, Any],
        name: str,
        args: list[Any],
        named: dict[str, Any],
        node: ast.AST,
    ) -> Any:
        if name in {"get", "pop", "setdefault"} and args:
            key = self.plain_key(args[0])
            default = args[1] if len(args) > 1 else None
            if name == "setdefault" and key not in holder:
                holder[key] = default
                self.keep(holder, args[0], default)
            if name == "get" and default is None and key not in holder:
                missing = self.dict_item(holder, args[0], node, Box(shape=()))
                if isinstance(missing, Box):
                    missing.marks |= {"maybe_none"}
                return missing
            return self.dict_item(holder, args[0], node, default)
        if name == "items":
            return list(holder.items())
        if name in {"keys", "values"}:
            return list(getattr(holder, name)())
        if name == "update":
            holder.update(args[0] if args and isinstance(args[0], dict) else {})
            holder.update(named)
            self.keep(holder, *args)
            return None
        if name == "copy":
            return dict(holder)
        if name == "clear":
            holder.clear()
            return None
        return Box()

    def dict_item(self, holder: dict[Any, Any], key: Any, node: ast.AST, default: Any) -> Any:
        plain = self.plain_key(key)
        if isinstance(holder, DefaultDict) and plain not in holder and holder.factory is not None:
            made = (
                holder.factory
                if isinstance(holder.factory, int)
                else self.call_value(holder.factory, [], {}, node)
            )
            holder[plain] = made
        return super().dict_item(holder, key, node, default)

    def path_method(
        self, path: PurePosixPath, name: str, args: list[Any], named: dict[str, Any]
    ) -> Any:
        if name in {"glob", "rglob", "iterdir"}:
            pattern = str(args[0]) if args and isinstance(args[0], str) else "*.bin"
            return [PurePosixPath(p) for p in glob_paths(str(path / pattern))]
        if name == "stat":
            return Namespace({"st_size": 1024 + 2 * STREAM})
        if name in {"exists", "is_file", "is_dir"}:
            return Box(shape=())
        if name in {"read_bytes", "read_text"}:
            if not path_kind(path.name) or path.suffix not in {".bin", ".npy"}:
                return snapshot(self.disk)
            data = self.read_data(path, {})
            return as_bytes(data) if path.suffix == ".bin" else data
        if name in {"write_bytes", "write_text"}:
            self.to_disk(args)
            self.writes(path)
            return None
        if name in {"resolve", "absolute", "expanduser"}:
            return path
        if name in {"joinpath", "with_suffix", "with_name"} and args and isinstance(args[0], str):
            return getattr(path, name)(*args)
        if name == "open":
            return self.py_open([path, *args], named, ast.Constant(None))
        return str(path) if name in {"as_posix", "__str__"} else None

    def namespace_call(
        self, holder: Namespace, name: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        attrs = holder.attrs
        if "__path__" in attrs:
            return self.file_call(attrs, name, args)
        if "__hook__" in attrs and name == "remove":
            self.hooks = max(0, self.hooks - bool(attrs["__hook__"]))
            return None
        if "__thread__" in attrs and name == "start":
            return self.call_value(attrs["__thread__"], attrs["__args__"], {}, node)
        if "__done__" in attrs and name == "result":
            return attrs["__done__"]
        if "__parser__" in attrs:
            return self.parser_call(attrs["__parser__"], holder, name, args, named)
        return self.opaque([*args], named, node)

    def parser_call(
        self,
        known_args: dict[str, Any],
        holder: Namespace,
        name: str,
        args: list[Any],
        named: dict[str, Any],
    ) -> Any:
        if name == "add_argument" and args and isinstance(args[0], str):
            flag = next((a for a in args if isinstance(a, str) and a.startswith("--")), args[0])
            unset = {"store_true": False, "store_false": True}.get(str(named.get("action")))
            default = named.get("default", unset)
            known_args[str(named.get("dest", flag.lstrip("-").replace("-", "_")))] = self.argument(
                flag, default, named
            )
        if name in {"add_argument_group", "add_mutually_exclusive_group"}:
            return holder
        if name in {"parse_args", "parse_known_args"}:
            space = Namespace(dict(known_args))
            return space if name == "parse_args" else (space, [])
        return None

    def argument(self, flag: str, default: Any, named: dict[str, Any]) -> Any:
        """A command-line option's value in the documented command, else its default."""
        words = self.arguments
        for i, word in enumerate(words):
            text = word.split("=", 1)[1] if word.startswith(flag + "=") else None
            text = words[i + 1] if word == flag and i + 1 < len(words) else text
            if word == flag and named.get("action", "").startswith("store_"):
                return named["action"] == "store_true"
            if text is not None:
                for kind in (int, float):
                    try:
                        return kind(text)
                    except ValueError:
                        continue
                return text
        return default
