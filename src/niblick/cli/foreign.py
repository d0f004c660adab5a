"""`niblick import`: a published state dict, or a folder for transformers, becomes a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from niblick.exchange.foreign import Imported

# What changes an assumption that is no key of the recipe.
_OPTIONS = {"tokenizer": "--tokenizer", "table_dtype": "--bfloat16-tables"}


def import_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .pt or .ptz state dict with the published names, or a folder for transformers."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint to write (.safetensors).")],
    family: Annotated[
        str | None,
        typer.Option("--as", help="A state dict's: token-shift, depth-recurrent or sidecar."),
    ] = None,
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
    bfloat16_tables: Annotated[
        bool,
        typer.Option(
            "--bfloat16-tables",
            help="Round embedding tables to bfloat16, as published code does on loading.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read a published state dict, infer its recipe, and write a checkpoint; or read the folder of
    a model that transformers wrote, which brings its recipe.
    """
    from niblick.errors import ArtifactError

    if out.suffix != ".safetensors":
        raise ArtifactError(f"--out {str(out)!r} must end in .safetensors")
    if not file.exists():
        raise ArtifactError(f"there is no file or folder {str(file)!r}")
    if file.is_dir():
        if out.resolve().parent == file.resolve():
            raise ArtifactError(f"--out {str(out)!r} lies in the folder that is read; name another")
        if family is not None or tokenizer is not None or set_ or bfloat16_tables:
            raise ArtifactError(
                "a folder says all about its model: --as, --tokenizer, --set and"
                " --bfloat16-tables are for state dicts"
            )
        _import_folder(file, out, as_json)
    elif family is None:
        raise ArtifactError("a state dict needs --as token-shift, depth-recurrent or sidecar")
    else:
        _import_state_dict(file, out, family, tokenizer, set_ or [], bfloat16_tables, as_json)


def _import_state_dict(
    file: Path,
    out: Path,
    family: str,
    tokenizer: str | None,
    overrides: list[str],
    bfloat16_tables: bool,
    as_json: bool,
) -> None:
    from niblick.artifact.checkpoint import save_checkpoint
    from niblick.exchange.foreign import import_state_dict
    from niblick.plan import make_plan
    from niblick.text.tokenizer import load_tokenizer

    chosen = load_tokenizer(tokenizer) if tokenizer is not None else None
    found = import_state_dict(
        file, family, tokenizer=chosen, overrides=overrides, bfloat16_tables=bfloat16_tables
    )
    save_checkpoint(
        out, tensors=found.tensors, recipe=found.recipe, tokenizer=found.tokenizer, meta=found.meta
    )
    _report(found)
    summary = {
        "checkpoint": str(out),
        "parameters": make_plan(found.recipe.model).parameter_count,
        "tensors": len(found.tensors),
        "tokenizer": found.tokenizer.name if found.tokenizer else None,
    }
    if as_json:
        summary |= {"assumed": found.assumed, "ignored": found.ignored}
        print(json.dumps(summary | {"recipe": found.recipe.model_dump(mode="json")}, indent=1))
        return
    named = summary["tokenizer"] or "none (name one to eval or generate)"
    print(
        f"{out}: {summary['parameters']:,} parameters in {summary['tensors']} tensors as {family};"
        f" tokenizer: {named}"
    )


def _import_folder(folder: Path, out: Path, as_json: bool) -> None:
    from niblick.artifact.checkpoint import save_checkpoint
    from niblick.exchange.hf import import_hf

    found = import_hf(folder)
    save_checkpoint(
        out, tensors=found.tensors, recipe=found.recipe, tokenizer=found.tokenizer, meta=found.meta
    )
    parameters = sum(tensor.size for tensor in found.tensors.values())
    assert found.tokenizer is not None
    facts = {"checkpoint": str(out), "parameters": parameters, "tokenizer": found.tokenizer.name}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"{out}: {parameters:,} parameters; tokenizer: {found.tokenizer.name}")


def _report(found: Imported) -> None:
    """One line on standard error for everything that is not from the file or not of the model."""
    for name, value in found.assumed.items():
        option = _OPTIONS.get(name, "--set")
        print(f"assumed {name} = {json.dumps(value)} ({option} changes it)", file=sys.stderr)
    for name, reason in found.ignored.items():
        print(f"ignored tensor {name}: {reason}", file=sys.stderr)
