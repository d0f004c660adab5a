"""The behaviour tests' half inside the sandbox: builds the script's model, probes it, drives its
evaluation.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from niblick.audit.inside import modelling, reaching
from niblick.audit.inside.loading import load_script
from niblick.audit.inside.measuring import setting
from niblick.audit.inside.smoking import prepare

_MOST_PARAMETERS = 120_000_000
_HARNESS = {name: sys.modules[name] for name in ("niblick", "niblick.audit")}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Imports the script; returns its summary, `probe` and `driven` as far as each was possible."""
    finder, hook = prepare(job)
    loaded = load_script(
        job["folder"], job["script"], job.get("environment", {}), lambda: hook.seconds
    )
    result: dict[str, Any] = {**loaded.summary(), "stood_in": finder.used}
    if loaded.module is not None and "torch" in sys.modules:
        with contextlib.suppress(Exception):
            result |= _behave(loaded.module, [job.get("text", ""), *loaded.executed])
    return result


def _behave(module: ModuleType, texts: list[str]) -> dict[str, Any]:
    text = modelling.program_text(module, texts)
    vocab = setting(module, "vocab")
    found = modelling.models(text, module, device="empty")
    if not found or vocab is None:
        return {"probe": {"unusable": "no model of the script could be built"}}
    site, model = found[0]
    if modelling.parameters(model) > _MOST_PARAMETERS:
        return {"probe": {"unusable": "the model is too large to run here"}}
    with _own_modules():  # these subclass what torch has, so they wait for the script's torch
        from niblick.audit.inside import driving, probing
    probing.randomise(model)
    probe = {"model": site.name, "line": site.call.lineno, **probing.probe(model, vocab)}
    settings = modelling.settings_of(module)
    calls = reaching.reached(text, module)
    driven = driving.drive(module, model, settings, vocab, calls)
    return {"probe": probe, "driven": driven}


@contextlib.contextmanager
def _own_modules() -> Iterator[None]:
    """Lets this harness import parts of itself after the script, which may bring a package of the
    same name.
    """
    theirs = {name: sys.modules.get(name) for name in _HARNESS}
    sys.modules.update(_HARNESS)
    try:
        yield
    finally:
        for name, module in theirs.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
