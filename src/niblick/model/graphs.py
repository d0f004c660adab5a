"""How the accelerator's pieces are handed to torch.compile: static shapes, one graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch

# A compiled piece is made anew for each shape: of matrices, of micro-batches while one is looked
# for. Without an account of its own it would share torch's eight with all that this process has
# compiled of the same code, other runs' models among them, and then give up.
_SHAPES = 64
_OWN = {"recompile_limit": _SHAPES, "isolate_recompiles": True}
_KNOWN = inspect.signature(torch.compile).parameters  # torch 2.13 has both
_ACCOUNT: dict[str, Any] = {name: value for name, value in _OWN.items() if name in _KNOWN}


def one_graph(call: Any, backend: Any = "inductor", **options: Any) -> Any:
    """`call` compiled as one graph for each shape, its backward as another; an error where Python
    would have to step in. `options` are torch.compile's.
    """
    if not _ACCOUNT:  # an older torch: all share one account
        import torch._dynamo.config as dynamo

        dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
    given = {"backend": backend, **_ACCOUNT, **options}
    return torch.compile(call, dynamic=False, fullgraph=True, **given)
