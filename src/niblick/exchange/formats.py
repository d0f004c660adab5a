"""What a model leaves as: a Hugging Face folder, an ONNX or GGUF file, a web page, its tokenizer.

No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import niblick
from niblick.exchange.target import check_file, check_folder
from niblick.files import write_atomically


def export_model(
    model: str | Path, to: str, out: Path, *, tokenizer: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Write `model` as "hf", "onnx", "gguf" or "html", or its "tokenizer", to `out`; what was
    written, ready for JSON. `tokenizer` is for a model that brings none; `force` replaces a file or
    an earlier export at `out`.
    """
    if to == "hf":
        check_folder(out, force=force, mark="config.json", said='"model_type": "niblick"')
    else:
        check_file(out, force=force)
    opened = niblick.load(model, tokenizer=tokenizer)
    if to == "hf":
        from niblick.exchange.hf import export_hf

        size = export_hf(opened, out, card=opened.card)
    elif to == "onnx":
        from niblick.exchange.onnx import export_onnx

        size = export_onnx(opened, out)
    elif to == "html":
        from niblick.browser.page import export_page

        page = export_page(opened, opened.card)
        write_atomically(out, (page,))
        size = len(page)
    elif to == "tokenizer":
        data = opened.tokenizer.to_file_bytes()
        write_atomically(out, (data,))
        size = len(data)
    else:
        from niblick.exchange.gguf import export_gguf

        size = export_gguf(opened, out)
    return {"model": str(opened.path), "format": to, "out": str(out), "bytes": size}
