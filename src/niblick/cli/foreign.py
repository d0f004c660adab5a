"""`niblick import`: a published state dict becomes a checkpoint that eval, pack and generate
accept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def import_command(
    file: Annotated[
        Path, typer.Argument(help="A .pt or .ptz state dict with the published names.")
    ],
    family: Annotated[str, typer.Option("--as", help="token-shift, depth-recurrent or sidecar.")],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint to write (.safetensors).")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", help="The tokenizer's .model (default at V = 1024: the challenge's)."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="What tensors cannot tell: model.softcap=30. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read a published state dict, infer its recipe, and write a checkpoint."""
    from niblick.artifact import save_checkpoint
    from niblick.errors import ArtifactError
    from niblick.exchange.foreign import import_state_dict
    from niblick.text.tokenizer import load_tokenizer

    if out.suffix != ".safetensors":
        raise ArtifactError(f"--out {str(out)!r} must end in .safetensors")
    chosen = load_tokenizer(tokenizer) if tokenizer is not None else None
    found = import_state_dict(file, family, tokenizer=chosen, overrides=set_ or ())
    save_checkpoint(
        out, tensors=found.tensors, recipe=found.recipe, tokenizer=found.tokenizer, meta=found.meta
    )
    parameters = sum(tensor.size for tensor in found.tensors.values())
    if as_json:
        json.dump(
            {
                "checkpoint": str(out),
                "parameters": parameters,
                "tensors": len(found.tensors),
                "tokenizer": found.tokenizer.name if found.tokenizer else None,
                "recipe": found.recipe.model_dump(mode="json"),
            },
            sys.stdout,
            indent=1,
        )
        sys.stdout.write("\n")
        return
    named = (
        f"tokenizer {found.tokenizer.name}"
        if found.tokenizer
        else "no tokenizer (name one to eval or generate)"
    )
    print(f"{out}: {parameters:,} parameters in {len(found.tensors)} tensors as {family}, {named}")
