"""Does rounding hurt a purely looped model more than a hybrid one? `python
benchmarks/quantization_gap.py --out DIR`

Trains siblings of `depth-recurrent-small` with 8 virtual layers each and one budget in tokens, then
scores every one from float weights and from rounded ones: int8 as published (scale = max(clip, 1) /
127), and 8 to 4 bits per row without that floor. Matrices are rounded whatever their size (the
published export spares those of 65,536 elements and fewer, which at this width are all of them);
the tied embedding is stored in fp16, as published. The gap is bpb(rounded) - bpb(float) on the
validation split. Finished trainings in DIR are reused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from niblick.artifact import open_file, save_checkpoint
from niblick.compression import RoundingSpec, round_trip
from niblick.data.prepare import resolve_dataset
from niblick.evaluation import EvaluationOptions, evaluate
from niblick.model import build_model
from niblick.plan import Plan, Role, make_plan
from niblick.recipe import Recipe, load_recipe
from niblick.runtime import World, cache_folder
from niblick.training import train

LOOPED = "model.stack=[{{name='shared_blocks', loops={loops}, layers=['full*{blocks}']}}]"
SIBLINGS = {
    "hybrid 1 + 2x3 + 1": [],
    "looped 4x2 (same parameters)": [LOOPED.format(loops=2, blocks=4)],
    "looped 2x4": [LOOPED.format(loops=4, blocks=2)],
    "looped 1x8": [LOOPED.format(loops=8, blocks=1)],
}
PERCENTILE = 0.9999984
BITS = (8, 6, 5, 4)


def published_int8(weight: Tensor) -> Tensor:
    """int8 per row as published: clipped at a percentile, scale never under 1/127."""
    clip = torch.quantile(weight.abs(), PERCENTILE, dim=1, keepdim=True)
    scale = (clip / 127).clamp(min=1 / 127).half().float()
    return torch.round(weight.clamp(-clip, clip) / scale).clamp(-127, 127) * scale


def rounded(tensors: dict[str, Tensor], plan: Plan, bits: int | None) -> dict[str, Tensor]:
    """Every matrix rounded (`bits` None: as published), the embedding in fp16, the rest as it
    is.
    """
    roles = {p.name: p.role for p in plan.exported}
    found = {}
    for name, tensor in tensors.items():
        if roles[name] is Role.MATRIX:
            found[name] = (
                published_int8(tensor) if bits is None else round_trip(tensor, RoundingSpec(bits))
            )
        else:
            found[name] = tensor.half().float() if roles[name] is Role.EMBEDDING else tensor
    return found


def weights(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    """The trained weights of one sibling, from an earlier call where its file is there."""
    path = folder / "trained.safetensors"
    if not path.is_file():
        dataset = resolve_dataset(
            recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder()
        )
        resume = any((folder / "checkpoints").glob("step-*"))
        result = train(recipe, dataset, folder, world=World(), resume=resume)
        save_checkpoint(
            path, tensors=result.tensors, recipe=recipe, tokenizer=dataset.tokenizer, meta={}
        )
    return {name: torch.tensor(array) for name, array in open_file(path).tensors.items()}


def measure(recipe: Recipe, folder: Path) -> list[float]:
    """bpb in float, then the gaps: as published, then for each of BITS."""
    dataset = resolve_dataset(recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder())
    tensors, plan = weights(recipe, folder), make_plan(recipe.model)
    options = EvaluationOptions(mode="chunked")

    def score(values: dict[str, Tensor]) -> float:
        return evaluate(
            build_model(recipe, values), dataset, split="validation", options=options
        ).bpb

    base = score(tensors)
    return [base, *(score(rounded(tensors, plan, bits)) - base for bits in (None, *BITS))]


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--duration", default="6e5 tokens", help="training budget of each sibling")
    parser.add_argument(
        "--only", help="train the siblings whose name contains this, and print no table"
    )
    parser.add_argument("--set", action="append", default=[], help="override a recipe key")
    options = parser.parse_args()
    common = [f'training.duration="{options.duration}"', "training.batch_tokens=2048", *options.set]
    recipes = {
        name: load_recipe("depth-recurrent-small", [*common, *extra])
        for name, extra in SIBLINGS.items()
    }
    places = {name: options.out / f"sibling-{number}" for number, name in enumerate(recipes)}
    if options.only is not None:
        for name in filter(lambda name: options.only in name, recipes):
            weights(recipes[name], places[name])
        return
    head = " | ".join(f"int{bits}" for bits in BITS)
    print(f"| model | parameters | float bpb | int8, published scale | {head} |")
    print("|---|---|---|---|" + "---|" * len(BITS))
    for name, recipe in recipes.items():
        base, *gaps = measure(recipe, places[name])
        count = make_plan(recipe.model).parameter_count
        cells = " | ".join(f"{gap:+.4f}" for gap in gaps)
        print(f"| {name} | {count:,} | {base:.4f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
