"""The smoke test's half inside the sandbox: import with stand-ins, measure what the script defines,
then probe the model it would train.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from niblick.audit.inside import modelling
from niblick.audit.inside.loading import load_script
from niblick.audit.inside.measuring import measure, setting
from niblick.audit.inside.probing import probe, randomise
from niblick.audit.inside.worker import Tell
from niblick.audit.stand_ins.finder import StandInFinder
from niblick.audit.stand_ins.torch_hook import TorchHook

_MOST_PARAMETERS = 120_000_000


def run(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Imports `job["script"]` and measures it, which is told at once: the import's summary,
    `stood_in` and `measured`. The report has the model's `probe` too.
    """
    finder, hook = StandInFinder(job.get("declared", ())), TorchHook()
    sys.meta_path.insert(0, hook)
    sys.meta_path.append(finder)
    loaded = load_script(
        job["folder"], job["script"], job.get("environment", {}), lambda: hook.seconds
    )
    texts = [job.get("text", ""), *loaded.executed]
    seen = {**loaded.summary(), "stood_in": finder.used, "measured": {}}
    if loaded.module is None:
        return seen
    seen["measured"] = measure(loaded.module, texts)
    tell(seen)
    if "torch" in sys.modules:
        with contextlib.suppress(Exception):
            seen["probe"] = _probed(loaded.module, texts)
    return seen


def _probed(module: Any, texts: list[str]) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    text, vocab = modelling.program_text(module, texts), setting(module, "vocab")
    found = modelling.models(text, module, device="empty")
    if not found or vocab is None:
        return {"unusable": "no model of the script could be built"}
    site, model = found[0]
    if modelling.parameters(model) > _MOST_PARAMETERS:
        return {"unusable": "the model is too large to run here"}
    randomise(model)
    return {"model": site.name, "line": site.call.lineno, **probe(model, vocab)}
