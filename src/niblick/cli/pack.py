"""`niblick pack`: a checkpoint becomes the best artifact under a cap, or the smallest within a
loss.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.options import DeviceOption
from niblick.units import format_seconds, parse_size

if TYPE_CHECKING:
    from niblick.compression.packing import Packed

_SHOWN = 12  # tensors of the ledger


def pack_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint or a run folder.")],
    out: Annotated[Path, typer.Option(help="The artifact to write.")] = Path("artifact.nib"),
    max_bytes: Annotated[
        int | None,
        typer.Option(
            parser=parse_size, metavar="N", help="Cap in bytes (300k, 1MB, ...); else the recipe's."
        ),
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
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Pack MODEL into one file, and show where its bytes went."""
    from niblick.cli.progress import stages
    from niblick.functions import pack

    with stages() as report:
        packed = pack(
            model,
            out,
            max_bytes=max_bytes,
            target_tax=target_tax,
            codec=codec,
            code_bytes=code_bytes,
            data=data,
            self_calibrate=self_calibrate,
            device=device,
            on_stage=report,
        )
    if as_json:
        json.dump(describe(packed), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        _print(packed)


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
    from niblick.cli.tables import columns, table_lines
    from niblick.report.shapes import LEAST_BITS
    from niblick.scoring.wording import packing_text

    each = 8 * packed.size / max(packed.ledger.parameters, 1)
    print(f"{packed.path}: {packed.size:,} bytes, {each:.3f} bits per parameter all-in")
    parts = [[name, f"{size:,}"] for name, size in packed.ledger.parts.items()]
    print("", *table_lines([["part", "bytes"], *parts], right={1}), "", sep="\n")
    largest = sorted(packed.ledger.tensors.items(), key=lambda item: -item[1].bytes)
    rows = [["tensor", "parameters", "bytes", "bits each", "order-0 bits"]]
    for name, row in largest[:_SHOWN]:
        bits = row.entropy_bits
        entropy = "" if bits is None else f"{bits / max(row.parameters, 1):.3f}"
        sizes = [f"{row.parameters:,}", f"{row.bytes:,}", f"{row.bits_per_parameter:.3f}"]
        rows.append([name, *sizes, entropy])
    print(*table_lines(rows, right={1, 2, 3, 4}), sep="\n")
    if len(largest) > _SHOWN:
        print(f"and {len(largest) - _SHOWN} smaller tensors")
    told = packing_text(packed.choice)
    if packed.calibration_seconds:
        told += f"{'; ' if told else ''}calibrated in {format_seconds(packed.calibration_seconds)}"
    if told:
        print(*textwrap.wrap(f"packing: {told}", min(columns(), 100)), sep="\n")
    if each < LEAST_BITS:
        said = (
            f"{each:.1f} bits a weight: a smaller model, trained for such a cap (niblick train"
            " --max-bytes), may lose less"
        )
        print(*textwrap.wrap(said, min(columns(), 100)), sep="\n")
