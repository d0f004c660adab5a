"""`niblick export MODEL --to html`: a model as one page that runs it in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from niblick.browser.page import export_page
from niblick.errors import NiblickError
from niblick.facade import Model, load
from niblick.files import read_json, run_of, write_atomically
from niblick.limits import quoted


def write_page(source: str, out: Path, tokenizer: str | None, as_json: bool) -> None:
    """Write the page of a model to `out`, and say how large it is."""
    if out.is_dir():
        raise NiblickError(f"{quoted(str(out))} is a folder; --out names the page's file")
    model = load(source, tokenizer=tokenizer)
    page = export_page(model, _card(model))
    write_atomically(out, [page])
    if as_json:
        facts = {"page": str(out), "bytes": len(page), "model_bytes": model.path.stat().st_size}
        print(json.dumps(facts))
        return
    print(f"{out}: {len(page):,} bytes, of a model of {model.path.stat().st_size:,}")


def _card(model: Model) -> dict[str, Any] | None:
    """The card of the run that packed this very file."""
    run = run_of(model.path)
    path = run / "card.json" if run else None
    if path is None or not path.is_file():
        return None
    card = read_json(path)
    return card if card.get("artifact_sha256") == model.sha256 else None
