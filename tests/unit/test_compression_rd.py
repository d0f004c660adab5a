"""The rate-distortion codec: exact decoding, budgets met from below, hostile payloads refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decoded import floats, opened_model
from niblick.codecs import CODECS
from niblick.codecs.base import QUANTIZED_ROLES
from niblick.compression import Calibration
from niblick.compression.calibration import self_generated
from niblick.compression.packing import Packed, pack, packing_errors
from niblick.compression.sensitivity import measure
from niblick.errors import ArtifactError, CapacityError
from niblick.model import LanguageModel
from niblick.plan import Role, make_plan
from niblick.recipe import Recipe, recipe_from_dict
from niblick.text.tokenizer import load_tokenizer


def small(**changes: object) -> Recipe:
    model = {
        "vocab_size": 260,
        "dim": 16,
        "context": 16,
        "stack": [{"layers": ["token-shift", "full"]}],
        "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 4}},
        "mlp": {"width": 2.0},
        "bigram": {"enabled": True, "buckets": 32, "width": 8},
        "smear": {"enabled": True},
    }
    return recipe_from_dict(
        {"name": "small", "model": {**model, **changes}, "data": {"tokenizer": "bytes"}}
    )


def weights(recipe: Recipe, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = LanguageModel(recipe.model, seed=seed)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


def calibration(sequences: int = 2) -> Calibration:
    tokens = torch.randint(4, 260, (sequences, 32), generator=torch.Generator().manual_seed(5))
    return Calibration([tokens], bytes_per_token=1.0)


def packed(
    out: Path, tensors: dict[str, torch.Tensor], recipe: Recipe, **options: object
) -> Packed:
    return pack(
        tensors,
        recipe,
        load_tokenizer("bytes"),
        out,
        codec="rd",
        **{"calibration": calibration(), **options},
    )


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_decoding_gives_the_encoders_tensors_bit_for_bit_also_in_a_fresh_process(
    tmp_path: Path,
) -> None:
    recipe, out = small(), tmp_path / "a.nib"
    result = packed(out, weights(recipe), recipe)
    decoded = opened_model(out).state_dict()
    for name, tensor in floats(result.tensors).items():
        assert torch.equal(decoded[name], tensor), name
    script = (
        "import sys, torch, hashlib; from niblick.artifact import open_file; from niblick.model"
        " import build_model; o = open_file(sys.argv[1]); m = build_model(o.recipe, o.tensors);"
        " print(hashlib.sha256(m.logits(torch.arange(40).view(1,"
        " -1)).detach().numpy().tobytes()).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True
    )
    logits = opened_model(out).logits(torch.arange(40).view(1, -1)).detach()
    assert run.stdout.strip() == hashlib.sha256(logits.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("budget", [2_600, 4_000])
def test_a_budget_is_met_from_below_within_a_tenth_of_a_percent(
    tmp_path: Path, budget: int
) -> None:
    recipe = small()
    result = packed(tmp_path / "a.nib", weights(recipe), recipe, max_bytes=budget)
    assert result.size == (tmp_path / "a.nib").stat().st_size == sum(result.ledger.parts.values())
    assert budget - max(0.001 * budget, 16) <= result.size <= budget
    assert result.calibration_seconds > 0 and result.choice["aim"] == "budget"


@settings(max_examples=6, deadline=None)
@given(st.integers(500, 20_000), st.sampled_from(["normal", "zero", "outliers", "denormal"]))
@example(3070, "outliers")  # sensitivities so small that their digits are lost
def test_any_budget_and_any_weights_end_at_most_at_the_budget(budget: int, kind: str) -> None:
    recipe, tensors = small(), weights(small())
    generator = torch.Generator().manual_seed(budget)
    for name, tensor in tensors.items() if kind != "normal" else []:
        if kind == "outliers":
            tensors[name] = torch.where(
                torch.rand(tensor.shape, generator=generator) < 0.02, 1e6 * tensor, tensor
            )
        else:
            tensors[name] = tensor * (0.0 if kind == "zero" else 1e-41)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "a.nib"
        try:
            result = packed(out, tensors, recipe, max_bytes=budget)
        except CapacityError as error:
            assert "the smallest this codec can make" in str(error) and not out.exists()
            return
        assert out.stat().st_size == result.size <= budget
        filled = result.size >= budget - max(0.001 * budget, 16)
        assert filled or result.choice["limit"] == "largest" or result.choice["plain_bytes"]
        decoded = opened_model(out).state_dict()
        assert equal(decoded, floats(result.tensors))


def test_bytes_of_code_count_under_the_cap_where_asked(tmp_path: Path) -> None:
    recipe = small()
    result = packed(tmp_path / "a.nib", weights(recipe), recipe, max_bytes=4_000, extra_bytes=700)
    assert 3_300 - 16 <= result.size <= 3_300


def test_a_looped_blocks_cost_grows_with_its_visits() -> None:
    tokens = torch.randint(4, 260, (4, 16), generator=torch.Generator().manual_seed(2))
    traces = []
    for loops in (1, 4):
        recipe = small(stack=[{"layers": ["token-shift"], "loops": loops}], depth_scale=False)
        model = LanguageModel(recipe.model, seed=0).eval()
        model.load_state_dict(weights(recipe))
        found = measure(model, Calibration([tokens]))
        traces.append(
            next(entry.trace for name, entry in found.items() if name.endswith("mlp.fc.weight"))
        )
    assert traces[1] > 1.5 * traces[0]


def test_rows_are_measured_together_in_matrices_and_apart_in_tables() -> None:
    model = LanguageModel(small().model, seed=0).eval()
    model.load_state_dict(weights(small()))
    found = measure(model, calibration())
    for parameter in model.plan.exported:
        rows, columns, left = found[parameter.name]
        assert (left is not None) == (parameter.role is Role.MATRIX), parameter.name
        if left is not None:
            assert np.allclose(np.diagonal(left), rows) and np.allclose(left, left.T)
            assert np.trace(left) == pytest.approx(np.trace(columns), rel=1e-5)


def test_repetitive_weights_take_next_to_nothing_and_decode(tmp_path: Path) -> None:
    recipe = small()
    tensors = {name: torch.full_like(tensor, 0.5) for name, tensor in weights(recipe).items()}
    result = packed(tmp_path / "a.nib", tensors, recipe, max_bytes=100_000)
    decoded = opened_model(tmp_path / "a.nib").state_dict()
    assert result.size < 2_500
    assert equal(decoded, floats(result.tensors))


def test_more_bytes_never_give_a_worse_fit(tmp_path: Path) -> None:
    recipe, tensors = small(), weights(small())
    errors = []
    for budget in (2_600, 4_000, 7_000):
        found = floats(packed(tmp_path / "a.nib", tensors, recipe, max_bytes=budget).tensors)
        errors.append(sum(float((found[name] - tensors[name]).square().sum()) for name in tensors))
    assert errors[0] > errors[1] > errors[2]


def test_a_cap_below_the_smallest_file_names_the_minimum_and_one_above_the_largest_says_so(
    tmp_path: Path,
) -> None:
    recipe = small()
    with pytest.raises(CapacityError, match="the smallest this codec can make"):
        packed(tmp_path / "a.nib", weights(recipe), recipe, max_bytes=400)
    result = packed(tmp_path / "b.nib", weights(recipe), recipe, max_bytes=10_000_000)
    assert result.choice["limit"] == "largest"


def test_packing_is_deterministic(tmp_path: Path) -> None:
    recipe = small()
    for name in ("a.nib", "b.nib"):
        packed(tmp_path / name, weights(recipe), recipe, max_bytes=3_000)
    assert (tmp_path / "a.nib").read_bytes() == (tmp_path / "b.nib").read_bytes()


def test_a_target_tax_asks_for_the_smallest_file_within_the_loss(tmp_path: Path) -> None:
    recipe, tensors = small(), weights(small())
    model = LanguageModel(recipe.model)
    model.load_state_dict(tensors)
    own = self_generated(model, seed=0, sequences=16, length=64)  # text that there is a loss on
    sizes = []
    for target in (0.5, 0.05):
        text = Calibration(own.batches, bytes_per_token=1.0)
        result = packed(tmp_path / "a.nib", tensors, recipe, target_tax=target, calibration=text)
        assert result.choice["measured"] <= target
        sizes.append(result.size)
    assert sizes[0] < sizes[1]


def test_odd_tensors_pack_and_decode(tmp_path: Path) -> None:
    recipe = small()
    tensors = weights(recipe)
    tensors["tok_emb.weight"].zero_()
    tensors["blocks.0.mlp.fc.weight"].fill_(0.25)
    tensors["blocks.0.mlp.proj.weight"][3, 5] = 1e4
    tensors["blocks.0.mixer.W_k.weight"].mul_(1e-42)
    tensors["blocks.1.attn.q_gain"][0] = -1e6
    result = packed(tmp_path / "a.nib", tensors, recipe)
    decoded = opened_model(tmp_path / "a.nib").state_dict()
    assert equal(decoded, floats(result.tensors))
    assert float(decoded["blocks.0.mlp.proj.weight"][3, 5]) > 5e3


def test_infinities_are_refused_by_name(tmp_path: Path) -> None:
    recipe = small()
    tensors = weights(recipe)
    tensors["smear.gate"][0] = float("inf")
    with pytest.raises(ArtifactError, match=r"smear\.gate"):
        packed(tmp_path / "a.nib", tensors, recipe)


def test_without_calibration_the_model_writes_its_own_text(tmp_path: Path) -> None:
    recipe = small()
    result = pack(
        weights(recipe),
        recipe,
        load_tokenizer("bytes"),
        tmp_path / "a.nib",
        codec="rd",
        max_bytes=3_500,
    )
    assert result.size <= 3_500 and result.calibration_seconds == 0.0


def test_the_ledger_accounts_for_every_byte_and_the_coder_is_within_a_thousandth_of_its_model(
    tmp_path: Path,
) -> None:
    recipe = small(dim=32)
    result = packed(tmp_path / "a.nib", weights(recipe), recipe, max_bytes=9_000)
    document = result.ledger.to_json()
    coded = sum(document["parts"][part] for part in ("symbols", "scales", "models"))
    assert document["total"] == sum(document["parts"].values()) == result.size
    assert sum(row["bytes"] for row in document["tensors"].values()) == coded
    assert result.choice["coder_excess"] < 1e-3


def test_damaged_payloads_are_refused(tmp_path: Path) -> None:
    recipe = small()
    plan = make_plan(recipe.model)
    packed(tmp_path / "a.nib", weights(recipe), recipe, max_bytes=3_000)
    from niblick.artifact import container

    payload = container.read(tmp_path / "a.nib").payload
    damaged = [
        payload[:-1],
        payload[:10],
        b"",
        payload + bytes(4),
        bytes(len(payload)),
        b"\xff" * len(payload),
    ]
    generator = torch.Generator().manual_seed(1)
    for place in torch.randint(0, len(payload), (40,), generator=generator).tolist():
        damaged.append(payload[:place] + bytes([payload[place] ^ 0x40]) + payload[place + 1 :])
    for case in damaged:
        with pytest.raises(ArtifactError):
            CODECS["rd"].decode(case, recipe, plan)


@pytest.mark.parametrize(("limit", "used"), [(None, 6), (0.0, 2)])
def test_measuring_stops_at_its_limit_after_whole_batches_and_says_how_much_it_used(
    limit: float | None, used: int
) -> None:
    recipe = small()
    rows = [torch.arange(24).remainder(recipe.model.vocab_size).view(2, 12) for _ in range(3)]
    calibration = Calibration(rows, limit=limit)
    measure(LanguageModel(recipe.model), calibration)
    assert (calibration.sequences, calibration.planned) == (used, 6)


def test_errors_are_what_packing_under_the_cap_adds(tmp_path: Path) -> None:
    recipe, tensors = small(), weights(small())
    asked = recipe.model_copy(
        update={"artifact": recipe.artifact.model_copy(update={"codec": "rd", "max_bytes": 4_000})}
    )
    tokenizer = load_tokenizer("bytes")
    errors = packing_errors(tensors, asked, tokenizer, calibration())
    decoded = floats(packed(tmp_path / "a.nib", tensors, asked, max_bytes=4_000).tensors)
    large = {p.name for p in make_plan(recipe.model).exported if p.role in QUANTIZED_ROLES}
    assert errors.keys() == large
    for name, error in errors.items():
        np.testing.assert_array_equal(error, (decoded[name] - tensors[name]).numpy())
