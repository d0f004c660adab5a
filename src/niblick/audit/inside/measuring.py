"""Width, layers, vocabulary and parameters of what an imported script would train."""

from __future__ import annotations

import contextlib
import numbers
import sys
from types import ModuleType
from typing import Any

from niblick.audit.inside import modelling
from niblick.audit.words import ordered

_NAMES = {
    "dim": ordered("model_dim d_model n_embd embed_dim hidden_size dim width hidden_dim"),
    "layers": ordered("num_layers n_layers n_layer layers depth num_blocks num_unique_layers"),
    "vocab": ordered("vocab_size n_vocab vocab padded_vocab_size num_vocab"),
}


def measure(module: ModuleType, texts: list[str]) -> dict[str, Any]:
    """`dim`, `layers`, `vocab`, `parameters` and `model` (its class); unknown ones are None.

    `texts` are those that may hold the program: the script as unpacked, and what it gave to `exec`.
    """
    measured: dict[str, Any] = {name: setting(module, name) for name in _NAMES}
    measured["parameters"] = measured["model"] = None
    if "torch" not in sys.modules:
        return measured
    text = modelling.program_text(module, texts)
    for device in ("empty", "meta"):
        with contextlib.suppress(BaseException):
            found = modelling.models(text, module, device=device)
            if found:
                site, model = found[0]
                measured["parameters"], measured["model"] = modelling.parameters(model), site.name
                for name, value in _shape(model).items():
                    measured[name] = measured[name] or value
                break
    return measured


def setting(module: ModuleType, what: str) -> int | None:
    """ "dim", "layers" or "vocab" by its usual names, in any case, in the settings object or the
    module.
    """
    settings = modelling.settings_of(module)
    for holder in (settings, module):
        pairs = holder.items() if isinstance(holder, dict) else _attributes(holder)
        known = {str(name).lower(): value for name, value in pairs}
        for name in _NAMES[what]:
            value = known.get(name)
            whole = (
                int(value)
                if isinstance(value, numbers.Integral) and not isinstance(value, bool)
                else 0
            )
            if whole > 0:
                return whole
    return None


def _attributes(holder: Any) -> list[tuple[str, Any]]:
    if holder is None:
        return []
    pairs = []
    for name in dir(holder):
        if not name.startswith("__"):
            with contextlib.suppress(Exception):
                pairs.append((name, getattr(holder, name)))
    return pairs


def _shape(model: Any) -> dict[str, int]:
    """Vocabulary and width from the largest embedding, layers from the longest list of modules."""
    import torch

    tables = [part for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    shape = {}
    if tables:
        first = max(tables, key=lambda table: table.embedding_dim)
        shape = {"vocab": first.num_embeddings, "dim": first.embedding_dim}
    if lists:
        shape["layers"] = max(len(part) for part in lists)
    return shape
