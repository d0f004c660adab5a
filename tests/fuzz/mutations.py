"""Damage and malice: bytes, JSON trees and TOML files, changed by a seeded generator."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

DEEP = "\x01deep\x01"  # stands for a value nested 60,000 times over, which no encoder writes

_VALUES: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 1e308, -1e308, 1e-308, 0.5, True, None, "", "5",
    "x" * 60_000, "a\0b", "../up", "/", "\n\x1b[31m", "null", [], {}, [[]], {"a": {}}, [1] * 5000,
    float("nan"), float("inf"), DEEP,
)  # fmt: skip


def damaged(rng: random.Random, data: bytes) -> bytes:
    """`data` with one to four random changes: flips, cuts, insertions, extreme words, repeats."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            found[at:at] = rng.randbytes(rng.choice([1, 2, 8, 500]))
        elif kind == 3:
            word = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])
            found[at : at + 4] = word.to_bytes(4, "little")
        elif kind == 4:
            del found[at : at + rng.choice([1, 4, 100])]
        else:
            found[at:at] = found[at : at + rng.choice([4, 64, 1000])]
    return bytes(found)


def twisted(rng: random.Random, value: Any) -> Any:
    """A JSON-like tree with one to three of its nodes replaced, dropped, renamed or added."""
    found = deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = _twist(rng, found)
    return found


def _twist(rng: random.Random, tree: Any) -> Any:
    node, key = {"": tree}, ""
    holder: Any = node
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.randrange(8)
    if kind == 0 and holder is not node:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict) and holder is not node:
        holder[rng.choice(["x" * 60_000, "a\0b", "new", ""])] = deepcopy(rng.choice(_VALUES))
    elif kind == 2 and isinstance(holder[key], int | float):
        holder[key] = rng.choice(
            [str(holder[key]), holder[key] * 2**20, -holder[key], [holder[key]]]
        )
    else:
        holder[key] = deepcopy(rng.choice(_VALUES))
    return node[""]


def to_json(value: Any) -> str:
    """JSON of a tree that may hold `DEEP`."""
    text = json.dumps(value)
    return text.replace(json.dumps(DEEP), "[" * 60_000 + "]" * 60_000)


def to_toml(values: dict[str, Any], prefix: str = "") -> str:
    """TOML of a tree as a recipe's, hostile values written as well as TOML can."""
    lines, tables = [], []
    for key, value in values.items():
        name = json.dumps(key)
        if isinstance(value, dict):
            tables.append(f"[{prefix}{name}]\n{to_toml(value, f'{prefix}{name}.')}")
        else:
            lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join([*lines, *tables])


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if value is None:
        return '"null"'
    text = to_json(value)
    return {"NaN": "nan", "Infinity": "inf"}.get(text, text)
