"""`niblick pack`: a checkpoint becomes the best artifact under a cap, or the smallest within a
loss.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.imports import importing

if TYPE_CHECKING:
    from niblick.artifact import Checkpoint
    from niblick.compression import Calibration
    from niblick.compression.packing import Packed


def pack_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint or a run folder.")],
    out: Annotated[Path, typer.Option(help="The artifact to write.")] = Path("artifact.nib"),
    max_bytes: Annotated[
        int | None, typer.Option(help="Cap in bytes (decimal); else the recipe's.")
    ] = None,
    target_tax: Annotated[
        float | None,
        typer.Option(help="Instead: the smallest file that loses at most so many bits per byte."),
    ] = None,
    codec: Annotated[str | None, typer.Option(help="A codec's name; else the recipe's.")] = None,
    code_bytes: Annotated[
        int, typer.Option(help="Bytes of code that count under the cap too.")
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of shards to calibrate on; else the recipe's corpus."),
    ] = None,
    self_calibrate: Annotated[
        bool,
        typer.Option("--self-calibrate", help="Calibrate on text that the model writes itself."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Pack MODEL into one file, and show where its bytes went."""
    with importing():
        from niblick.artifact.checkpoint import find_weights
        from niblick.errors import ArtifactError
        from niblick.files import run_of
        from niblick.training.run_folder import claimed

    if not model.exists():
        raise ArtifactError(f"no checkpoint at {str(model)!r}; give a checkpoint or a run folder")
    folder, run = (
        model / "checkpoints" if (model / "checkpoints").is_dir() else model,
        run_of(out.absolute()),
    )
    with nullcontext() if run is None else claimed(run):
        packed = _pack(
            find_weights(folder),
            out,
            data=data,
            calibrate=not self_calibrate,
            codec=codec,
            max_bytes=max_bytes,
            target_tax=target_tax,
            extra_bytes=code_bytes,
        )
    if as_json:
        json.dump(describe(packed), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        _print(packed)


def _pack(
    weights: Path,
    out: Path,
    *,
    data: Path | None,
    calibrate: bool,
    codec: str | None,
    max_bytes: int | None,
    **limits: Any,
) -> Packed:
    """Read the checkpoint, calibrate where its codec does, and write `out`."""
    from niblick.artifact import read_checkpoint
    from niblick.codecs import CODECS
    from niblick.compression.packing import pack

    checkpoint = read_checkpoint(weights)
    name = codec or checkpoint.recipe.artifact.codec
    calibrate = calibrate and CODECS[name].needs_calibration
    return pack(
        checkpoint.tensors,
        checkpoint.recipe,
        checkpoint.tokenizer,
        out,
        max_bytes=max_bytes if max_bytes is not None else checkpoint.recipe.artifact.max_bytes,
        codec=name,
        calibration=_calibration(checkpoint, data) if calibrate else None,
        meta=checkpoint.meta,
        **limits,
    )


def _calibration(checkpoint: Checkpoint, data: Path | None) -> Calibration:
    """Training batches drawn as `train` draws them, with the bytes that a token stands for."""
    from niblick.compression.calibration import make_calibration
    from niblick.errors import DataError
    from niblick.report.run import find_dataset
    from niblick.runtime import read_world

    recipe = checkpoint.recipe
    try:
        dataset = find_dataset(recipe, read_world(), data)
    except DataError as error:
        raise DataError(f"{error}; name shards with --data, or pass --self-calibrate") from None
    if checkpoint.tokenizer is not None and checkpoint.tokenizer.sha256 != dataset.tokenizer.sha256:
        raise DataError(
            f"the checkpoint's tokenizer {checkpoint.tokenizer.name} is not the data's"
            f" {dataset.tokenizer.name}; name its own data with --data, or pass --self-calibrate"
        )
    return make_calibration(recipe, dataset)


def describe(packed: Packed) -> dict[str, Any]:
    """What was written, as plain values."""
    return {
        "path": str(packed.path),
        "bytes": packed.size,
        "choice": packed.choice,
        "calibration_seconds": round(packed.calibration_seconds, 3),
        "ledger": packed.ledger.to_json(),
    }


def _print(packed: Packed) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    each = 8 * packed.size / max(packed.ledger.parameters, 1)
    console.print(
        f"{packed.path}: {packed.size:,} B, {each:.3f} bits per parameter all-in", highlight=False
    )
    parts = Table("part", "bytes", box=None, header_style="bold")
    for name, size in packed.ledger.parts.items():
        parts.add_row(name, f"{size:,}")
    console.print(parts)
    rows = Table(
        "tensor", "parameters", "bytes", "bits each", "order-0 bits", box=None, header_style="bold"
    )
    for name, row in sorted(packed.ledger.tensors.items(), key=lambda item: -item[1].bytes)[:12]:
        entropy = (
            "" if row.entropy_bits is None else f"{row.entropy_bits / max(row.parameters, 1):.3f}"
        )
        rows.add_row(
            name, f"{row.parameters:,}", f"{row.bytes:,}", f"{row.bits_per_parameter:.3f}", entropy
        )
    console.print(rows)
    if packed.choice.get("limit") == "largest":
        console.print("This is the largest file the codec can make; more bytes would not help.")
    told = ", ".join(
        f"{key} {value}" for key, value in packed.choice.items() if not isinstance(value, dict)
    )
    console.print(
        f"chosen: {told}; calibration {packed.calibration_seconds:.1f} s", highlight=False
    )
