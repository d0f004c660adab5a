"""What an `rd` file says of its matrices' steps reaches the engine, which believes it only as far
as it holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from niblick.artifact import open_model
from niblick.compression import Calibration
from niblick.compression.packing import pack
from niblick.engine.lattice import decode, encode
from niblick.model import LanguageModel
from niblick.plan import Role
from niblick.recipe import recipe_from_dict
from niblick.text.tokenizer import load_tokenizer

MODEL = {
    "vocab_size": 260,
    "dim": 32,
    "context": 16,
    "stack": [{"layers": ["token-shift", "full"]}],
    "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 4}},
    "mlp": {"width": 2.0},
}


def opened(folder: Path) -> LanguageModel:
    recipe = recipe_from_dict({"name": "small", "model": MODEL, "data": {"tokenizer": "bytes"}})
    model = LanguageModel(recipe.model, seed=0)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: t + 0.1 * torch.randn(t.shape, generator=generator)
        for name, t in model.state_dict().items()
    }
    tokens = torch.randint(4, 260, (2, 32), generator=generator)
    pack(
        tensors,
        recipe,
        load_tokenizer("bytes"),
        folder / "a.nib",
        codec="rd",
        calibration=Calibration([tokens]),
        max_bytes=20_000,
    )
    return open_model(folder / "a.nib").model


def test_every_matrix_is_made_of_whole_multiples_of_the_steps_told(tmp_path: Path) -> None:
    model = opened(tmp_path)
    matrices = model.state_dict()
    assert set(model.steps) == {
        p.name for p in model.plan.exported if p.role in (Role.MATRIX, Role.EMBEDDING)
    }
    for name, (rows, columns) in model.steps.items():
        weight = matrices[name].numpy()
        count = weight / rows[:, None] / columns[None, :]
        assert np.allclose(count, np.rint(count), rtol=1e-5), name
        codes = encode(weight, steps=(rows, columns))
        assert codes.bits <= 16 and np.allclose(decode(codes), weight, rtol=1e-6, atol=0)


def test_steps_that_no_longer_hold_do_no_harm(tmp_path: Path) -> None:
    model = opened(tmp_path)
    generator = np.random.default_rng(0)
    for name, (rows, columns) in model.steps.items():
        weight = generator.normal(size=(len(rows), len(columns))).astype(np.float32)
        for steps in ((rows, columns), (rows * 0, columns), (rows * np.float32(np.inf), columns)):
            found, plain = encode(weight, steps=steps), encode(weight)
            assert found.bits == plain.bits and (decode(found) == decode(plain)).all(), name
