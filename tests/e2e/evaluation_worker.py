"""Run under torchrun by a test: scores one dataset in every mode and prints the per-document sums
of each.
"""

import json
import sys
import weakref
from pathlib import Path

import torch.distributed as dist

from niblick.evaluation import evaluate
from niblick.runtime import process_group, read_world
from property.evaluators import make_dataset, make_model
from unit.evaluation_cases import CASES


def scores(folder, world):
    """Per-document nats by case."""
    dataset, model = make_dataset(folder, (30, 9, 41, 1, 25, 60)), make_model()
    return {
        name: (
            evaluate(
                model, dataset, split="validation", options=options, world=world
            ).documents.nats
        )
        for name, options in CASES.items()
    }


if __name__ == "__main__":
    world = read_world()
    with process_group(world, "cpu"):
        group = weakref.ref(dist.group.WORLD)
        found = scores(Path(sys.argv[1]) / str(world.rank), world)
    assert group() is None  # its threads have ended, whatever was imported meanwhile
    (Path(sys.argv[1]) / f"{world.rank}.json").write_text(json.dumps(found))
