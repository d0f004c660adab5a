"""Initialisation follows the spec's rules: orthogonal, PyTorch's default, zero, overtone, phase."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any

import pytest
import torch

from niblick.errors import NiblickError
from niblick.model import LanguageModel
from niblick.recipe.model import ModelRecipe

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "dim": 128,
    "context": 16,
    "stack": [{"layers": ["token-shift", "full*3"]}],
    "attention": {"heads": 2, "kv_heads": 1},
}


def build(**changes: Any) -> dict[str, torch.Tensor]:
    return dict(LanguageModel(ModelRecipe.model_validate(BASE | changes), seed=1).state_dict())


def is_orthogonal(weight: torch.Tensor, gain: float = 1.0) -> bool:
    singular = torch.linalg.svdvals(weight)
    return bool((singular - gain).abs().max() < 1e-4)


def is_torch_default(weight: torch.Tensor, fan_in: int) -> bool:
    bound = fan_in**-0.5
    return 0.8 * bound < float(weight.abs().max()) <= bound and not is_orthogonal(weight.flatten(1))


def test_linear_maps_with_both_sides_of_64_start_orthogonal() -> None:
    weights = build()
    for name in (
        "blocks.0.mixer.W_r",
        "blocks.0.mixer.W_k",
        "blocks.1.attn.c_q",
        "blocks.1.attn.c_k",
        "blocks.0.mlp.fc",
    ):
        assert is_orthogonal(weights[f"{name}.weight"]), name


def test_smaller_linear_maps_start_as_pytorch_does() -> None:
    weights = build(dim=48, attention={"heads": 2, "kv_heads": 1, "rope": {"dims": 16}})
    for name in ("blocks.0.mixer.W_r", "blocks.1.attn.c_q", "blocks.1.attn.c_v", "blocks.0.mlp.fc"):
        assert is_torch_default(weights[f"{name}.weight"], 48), name


def test_output_projections_and_control_tensors_start_at_their_constants() -> None:
    weights = build(smear={"enabled": True}, skips={"enabled": True})
    for name in ("blocks.0.mixer.W_v", "blocks.1.attn.proj", "blocks.1.mlp.proj"):
        assert not weights[f"{name}.weight"].any(), name
    assert not weights["smear.gate"].any()
    assert (weights["blocks.0.mixer.mix_r"] == 0.5).all() and (
        weights["blocks.1.attn.q_gain"] == 1.5
    ).all()
    assert (weights["blocks.0.attn_scale"] == 1).all() and (weights["skip_weights"] == 1).all()
    assert (weights["blocks.0.resid_mix"][0] == 1).all() and not weights["blocks.0.resid_mix"][
        1
    ].any()


def test_the_bigram_projection_starts_orthogonal_times_one_over_root_two_layers() -> None:
    weights = build(bigram={"enabled": True, "width": 80})
    assert is_orthogonal(weights["bigram.proj.weight"], 1 / sqrt(2 * 4))
    assert not weights["bigram.embed.weight"].any()
    assert float(weights["bigram.scale"]) == pytest.approx(0.05)


def test_the_value_embedding_starts_with_its_own_spread_and_scale() -> None:
    weights = build(value_embedding={"enabled": True, "layers": [3], "width": 96})
    assert float(weights["ve_embed.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert is_orthogonal(weights["ve_proj.weight"])
    assert float(weights["ve_scales.3"]) == pytest.approx(0.1)


def test_the_sidecar_starts_as_pytorch_does_with_silent_sites() -> None:
    weights = build(sidecar={"enabled": True, "layers": [2, 3], "width": 100})
    assert is_torch_default(weights["shared_sparse.gate.weight"], 128)
    assert is_torch_default(weights["shared_sparse.proj.weight"], 100)
    assert is_torch_default(weights["shared_sparse.local.weight"], 3)
    assert (
        not weights["shared_sparse_scale"].any()
        and not weights["shared_sparse.site_gate.weight"].any()
    )


def test_a_recipe_can_ask_for_pytorch_defaults_everywhere() -> None:
    weights = build(linear_init="torch")
    assert is_torch_default(weights["blocks.1.attn.c_q.weight"], 128)
    assert is_torch_default(weights["blocks.0.mixer.W_k.weight"], 128)


def test_overtone_replaces_the_singular_values_by_a_power_law() -> None:
    singular = torch.linalg.svdvals(build(embedding={"init": "overtone"})["tok_emb.weight"])
    wanted = singular[0] * torch.arange(1, 97).rsqrt()
    torch.testing.assert_close(singular, wanted, rtol=1e-4, atol=1e-6)


def test_the_plain_embedding_is_normal_with_the_recipes_spread() -> None:
    assert float(build()["tok_emb.weight"].std()) == pytest.approx(0.005, rel=0.05)


def test_phase_initialises_each_virtual_layers_mix_by_depth() -> None:
    weights = build(
        residual_mix={"init": "phase"},
        scalars="virtual",
        stack=[{"layers": ["full*2"], "loops": 2}],
    )
    for i in range(4):
        p = 1 / (1 + exp(-3 * (i / 3 - 0.5)))
        mix = weights[f"vlayers.{i}.resid_mix"]
        assert mix[0].tolist() == pytest.approx([p] * 128) and mix[1].tolist() == pytest.approx(
            [1 - p] * 128
        )


def test_multi_token_heads_start_at_zero_and_are_not_part_of_the_exported_model() -> None:
    model = LanguageModel(ModelRecipe.model_validate(BASE | {"mtp": {"heads": 2}}), seed=0)
    plain = LanguageModel(ModelRecipe.model_validate(BASE), seed=0)
    assert model.plan.parameter_count == plain.plan.parameter_count
    assert {p.name for p in model.plan.exported} == set(plain.state_dict())
    heads = model.mtp_logits(torch.randn(1, 3, 128))
    assert [h.shape for h in heads] == [(1, 3, 96)] * 2 and not heads[0].any()


def test_tokens_that_do_not_fit_are_refused_by_name() -> None:
    model = LanguageModel(ModelRecipe.model_validate(BASE), seed=0)
    for tokens, words in (
        (torch.tensor([[96]]), "96..96 are outside the vocabulary 0..95"),
        (torch.tensor([[-1]]), "-1..-1"),
        (torch.zeros(1, 0, dtype=torch.int64), "T >= 1"),
        (torch.zeros(4, dtype=torch.int64), "must be (B, T)"),
        (torch.zeros(1, 2), "torch.float32"),
    ):
        with pytest.raises(NiblickError) as caught:
            model(tokens)
        assert words in str(caught.value)
    with pytest.raises(NiblickError, match="the state is of 2 sequences, the tokens are of 1"):
        model(torch.zeros(1, 1, dtype=torch.int64), model.empty_state(2))
    other = LanguageModel(ModelRecipe.model_validate(BASE | {"smear": {"enabled": True}}), seed=0)
    with pytest.raises(NiblickError, match="belongs to another model"):
        model(torch.zeros(1, 1, dtype=torch.int64), other.empty_state())


def test_causality_is_bit_exact_at_the_width_of_a_real_model() -> None:
    model = LanguageModel(
        ModelRecipe.model_validate(
            BASE | {"stack": [{"layers": ["window:32", "token-shift", "full"]}]}
        ),
        seed=0,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            )
        ids = torch.randint(0, 96, (2, 301), generator=torch.Generator().manual_seed(3))
        other = ids.clone()
        other[:, 257] = (other[:, 257] + 1) % 96
        first, second = model.logits(ids), model.logits(other)
    assert torch.equal(first[:, :257], second[:, :257]) and not torch.equal(
        first[:, 257], second[:, 257]
    )
