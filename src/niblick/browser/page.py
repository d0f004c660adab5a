"""One HTML file with a model, its tokenizer and the engine: it opens from disk, offline.

Everything but the page itself is one compressed run of bytes inside of it: a JSON document of
facts, the tokenizer's map of characters, the WebAssembly module and the model's image, after their
four sizes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from niblick.browser.image import COLUMNS, flatten
from niblick.browser.text import to_text
from niblick.browser.tokenizer import describe_tokenizer
from niblick.browser.wasm import compiled
from niblick.scoring.markup import escape

if TYPE_CHECKING:
    from niblick.facade import Model

_SCRIPTS = ("tokenizer.js", "engine.js", "app.js")


def export_page(model: Model, card: Mapping[str, Any] | None = None) -> bytes:
    """The page of a model; `card` is that of the model's run.

    `NiblickError` where the model has no tokenizer, or the page cannot compute it or the plan.
    """
    told, characters = describe_tokenizer(model.tokenizer)
    facts = {"tokenizer": told, "columns": COLUMNS}
    parts = [
        json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode(),
        characters,
        compiled(),
        flatten(model.plan, model.tensors),
    ]
    content = zlib.compress(struct.pack("<4I", *map(len, parts)) + b"".join(parts), 9)
    named = {
        "title": f"{escape(model.recipe.name)}: a language model in one page",
        "name": escape(model.recipe.name),
        "summary": f"A language model of {model.plan.parameter_count:,} parameters, in this page.",
        "css": _asset("page.css"),
        "card": marked(card_rows(model, card or {})),
        "bytes": str(len(content)),
        "script": "\n".join(_asset(name).replace('"use strict";\n', "") for name in _SCRIPTS),
        "model": to_text(content),
    }
    return _filled(_asset("page.html"), named).encode()


def card_rows(model: Model, card: Mapping[str, Any]) -> dict[str, str]:
    """What the page says about the model: from its file, and from a card where there is one."""
    recipe, plan = model.recipe, model.plan
    mixers = [layer.mixer for layer in plan.layers]
    counted = ", ".join(f"{mixers.count(kind)} {kind}" for kind in dict.fromkeys(mixers))
    rows = {
        "Description": recipe.description,
        "Parameters": f"{plan.parameter_count:,}",
        "Layers": f"{plan.depth} ({counted}), width {recipe.model.dim}",
        "Context": f"{recipe.model.context:,} tokens",
        "Tokenizer": f"{model.tokenizer.name}, {model.tokenizer.vocab_size:,} tokens",
        "File": f"{model.path.stat().st_size:,} bytes, SHA-256 {model.sha256}",
    }
    score = card.get("packed_bpb", card.get("bpb"))
    if isinstance(score, int | float):
        rows["Score"] = f"{score:.4f} bits per byte ({card.get('split')}, {card.get('mode')})"
    seconds = card.get("train_seconds")
    if isinstance(seconds, int | float):
        rows["Training"] = f"{seconds:,.0f} seconds on {recipe.data.corpus}"
    return {name: text for name, text in rows.items() if text}


def marked(rows: Mapping[str, str]) -> str:
    """Names and texts as the items of a list in HTML, escaped."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())


def _asset(name: str) -> str:
    return (resources.files("niblick.browser") / "page" / name).read_text("utf-8")


def _filled(template: str, named: Mapping[str, str]) -> str:
    """The template with every `{name}` in it replaced, once."""
    parts, rest = [], template
    for name in sorted(named, key=lambda name: template.index("{" + name + "}")):
        before, _, rest = rest.partition("{" + name + "}")
        parts += [before, named[name]]
    return "".join([*parts, rest])
