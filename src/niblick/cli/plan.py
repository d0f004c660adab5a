"""`niblick plan` and `niblick recipes`: what a recipe builds and costs, before anything is built.
No torch.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Annotated, Any

import typer

from niblick.cli.completion import recipes
from niblick.cli.imports import importing
from niblick.cli.options import JsonOption, RecipeArgument, SetOption
from niblick.cli.tables import columns, headline, table_lines
from niblick.components import MIXERS
from niblick.plan import Plan, VirtualLayer, layer_spec, make_plan
from niblick.recipe import Recipe, list_recipes, load_recipe
from niblick.units import format_bytes

_LINE = 80  # characters of a list's line where the terminal is wider or there is none


def plan_command(
    recipe: RecipeArgument, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show a recipe's virtual layers, parameters, FLOPs, decode state and artifact bytes."""
    with importing():  # pydantic builds the recipe's validator
        chosen = load_recipe(recipe, set_ or ())
        plan = make_plan(chosen.model)
        totals = plan_totals(chosen, plan)
    if as_json:
        json.dump({**totals, "layers": layer_rows(plan)}, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    _print(chosen, plan, totals)


def recipes_command(as_json: JsonOption = False) -> None:
    """List the shipped recipes with their parameters and byte caps, one line each."""
    rows = [_recipe_row(load_recipe(name)) for name in list_recipes()]
    if as_json:
        json.dump(rows, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    cells = [[r["name"], _millions(r["parameters"]), _millions(r["max_bytes"], "B")] for r in rows]
    cells = [["recipe", "weights", "cap"], *cells]
    taken = sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True))
    room = min(columns(), _LINE) - taken
    told = ["what it is", *(headline(r["description"], room) for r in rows)]
    table = [[*cell, text] for cell, text in zip(cells, told, strict=True)]
    print(*table_lines(table, right={1, 2}), sep="\n")


def techniques_command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Only those that this recipe uses and can do without.",
            autocompletion=recipes,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the techniques that `niblick ablate --without` can leave out, one line each."""
    from niblick.scoring.techniques import all_techniques, used_techniques

    known = [each for each in all_techniques() if each.without]
    if recipe is not None:
        used = used_techniques(load_recipe(recipe))
        known = [each for each in known if each.name in used]
    rows = [{"name": t.name, "group": t.group, "summary": t.summary or t.name} for t in known]
    if as_json:
        json.dump(rows, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    cells = [[row["name"], row["summary"]] for row in rows]
    print(*table_lines([["technique", "what it is (and what takes its place)"], *cells]), sep="\n")


def _millions(count: int, unit: str = "") -> str:
    """A count as people say it, such as 27.0 M or 16 MB."""
    shown = f"{count / 1e6:g}" if unit else f"{count / 1e6:.1f}"
    return f"{shown} M{unit}"


def plan_totals(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """The Plan JSON of the design: counts, FLOPs per token forward, state bytes in float32,
    artifact bytes.
    """
    from niblick.artifact.sizes import artifact_sizes

    bound, estimate = artifact_sizes(recipe, plan)
    return {
        "recipe": recipe.name,
        "parameters": plan.parameter_count,
        "members": plan.model.members,
        "virtual_layers": len(plan.layers),
        "weight_blocks": plan.weight_blocks,
        "flops_per_token": plan.flops_per_token,
        "decode_state_bytes": plan.decode_state_bytes(),
        "decode_state_dtype": "float32",
        "artifact_bytes_bound": bound,
        "artifact_bytes_estimate": estimate,
        "artifact_max_bytes": recipe.artifact.max_bytes,
    }


def layer_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row per virtual layer, of an ensemble those of one member; a looped block's parameters
    are counted at its first visit.
    """
    counted: set[str] = set()
    rows = []
    for layer in plan.layers:
        spec = layer_spec(plan.model, layer)
        new = [p for p in spec.parameters if p.name not in counted]
        counted.update(p.name for p in new)
        rows.append(
            {
                "layer": layer.index,
                "block": layer.block,
                "mixer": layer.mixer,
                "window": layer.span - 1 if MIXERS[layer.mixer].windowed else None,
                "scale": layer.scale,
                "xsa": layer.xsa,
                "value_embedding": layer.value_embedding,
                "sidecar_site": layer.sidecar_site,
                "push": layer.push,
                "pop": layer.pop,
                "parameters": sum(p.size for p in new),
                "flops_per_token": sum(product.flops for product in spec.matmuls),
                "decode_state_bytes": sum(entry.bytes(4) for entry in spec.state),
            }
        )
    return rows


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "parameters": make_plan(recipe.model).parameter_count,
        "max_bytes": recipe.artifact.max_bytes,
        "duration": recipe.training.duration,
        "description": recipe.description,
    }


def _print(recipe: Recipe, plan: Plan, totals: dict[str, Any]) -> None:
    rows = layer_rows(plan)
    cells = []
    for layer, row in zip(plan.layers, rows, strict=True):
        mixer = f"{layer.mixer}:{row['window']}" if row["window"] else layer.mixer
        numbers = [
            f"{row[key]:,}" for key in ("parameters", "flops_per_token", "decode_state_bytes")
        ]
        block = layer.block.replace("_blocks.", " ").removeprefix("blocks.")
        cells.append([str(layer.index), block, mixer, _extras(layer), *numbers])
    keys = ("parameters", "flops_per_token", "decode_state_bytes")
    members = plan.model.members
    one = totals if members == 1 else plan_totals(recipe, plan.members[0])
    rest = [f"{one[key] - sum(row[key] for row in rows):,}" for key in keys]
    cells.append(["", "", "", "outside the layers", *rest])
    if members > 1:
        cells.append(["", "", "", "one member", *(f"{one[key]:,}" for key in keys)])
    cells.append(
        [
            "",
            f"{totals['weight_blocks']} blocks",
            "",
            "total",
            *(f"{totals[key]:,}" for key in keys),
        ]
    )
    sys.stdout.write(f"{recipe.name}: {plan.depth} virtual layers\n")
    if recipe.description:
        print(*textwrap.wrap(recipe.description, min(columns(), 100)), sep="\n")
    print()
    names = ["layer", "block", "mixer", "with", "parameters", "FLOPs/token", "state bytes"]
    print(*table_lines([names, *cells], right={4, 5, 6}, wrap=3), sep="\n")
    sys.stdout.write(
        f"artifact: estimated {format_bytes(totals['artifact_bytes_estimate'])}, at most"
        f" {format_bytes(totals['artifact_bytes_bound'])}; cap"
        f" {format_bytes(totals['artifact_max_bytes'])}\n"
    )


def _extras(layer: VirtualLayer) -> str:
    parts = ["xsa"] * layer.xsa + ["value embedding"] * layer.value_embedding
    if layer.push:
        parts.append("push")
    if layer.pop is not None:
        parts.append(f"pop w{layer.pop}")
    if layer.sidecar_site is not None:
        parts.append(f"sidecar {layer.sidecar_site}")
    return ", ".join(parts)
