"""`niblick doctor`: what this machine is and how the commands would run on it, on one page."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from niblick.cli.imports import importing
from niblick.cli.options import JsonOption
from niblick.cli.tables import table_lines


def doctor_command(
    seconds: Annotated[
        float, typer.Option(min=0, max=600, help="How long to measure pocket's speed; 0 does not.")
    ] = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Show this machine, the path that each command takes on it, what is slow and its cure."""
    with importing():
        from niblick.doctor import examine

    found = examine(seconds)
    print(json.dumps(found, indent=1, allow_nan=False) if as_json else "\n".join(page(found)))


def page(found: dict[str, Any]) -> list[str]:
    """What `examine` found, as lines of text."""
    paths = [[command, path] for command, path in found["paths"].items()]
    lines = [*table_lines(_machine(found)), "", *table_lines(paths)]
    if "pocket" in found:
        lines += ["", *table_lines(_speeds(found["pocket"]))]
    advice = found["advice"]
    lines += ["", "Nothing here is slower than it need be." if not advice else "Slow or missing:"]
    for each in advice:
        lines += [f"- {each['what']}", f"  cure: {each['cure']}"]
    return lines


def _machine(found: dict[str, Any]) -> list[list[str]]:
    processor, torch = found["processor"], found["torch"]
    free = found["memory"]["available_bytes"]
    places = f"{processor['available']} of {processor['processors']} processors"
    rows = [
        ["processor", processor["name"]],
        ["features", " ".join(processor["features"]) or "none known"],
        ["threads", f"{processor['threads']} on {places}"],
        ["memory", "unknown" if free is None else f"{free / 1e9:.1f} GB free"],
    ]
    rows += [[name, state] for name, state in found["libraries"].items() if name != "features"]
    if torch is None:
        return [*rows, ["torch", "not installed"]]
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "no CUDA"
    rows.append(["torch", f"{torch['version']}, {build}, {torch['threads']} threads"])
    for gpu in torch["gpus"]:
        low, size = "bf16" if gpu["bf16"] else "no bf16", f"{gpu['memory_bytes'] / 1e9:.0f} GB"
        rows.append(["GPU", f"{gpu['name']}, {size}, {gpu['capability']}, {low}"])
    return rows if torch["gpus"] else [*rows, ["GPU", "none"]]


def _speeds(pocket: dict[str, Any]) -> list[list[str]]:
    generate = pocket["generate"]
    rows = [["pocket writes", f"{generate['tokens_per_second']:,} tokens/s ({generate['engine']})"]]
    if "train" in pocket:
        train = pocket["train"]
        rate = train["tokens_per_second"]
        plain = "" if train["compiled"] else ", not compiled"
        each = f"{rate:,} tokens/s in {train['precision']}{plain}"
        rows.append(["pocket trains", f"{each}, {600 * rate / 1e6:.1f} M tokens in its 600 s"])
    return rows
