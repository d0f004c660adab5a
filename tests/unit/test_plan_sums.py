"""Plans: FLOPs, state bytes, loops, skips and sites, counted by hand on small recipes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from niblick.errors import RecipeError
from niblick.plan import Plan, Role, layer_spec, make_plan
from niblick.recipe.model import ModelRecipe
from property.plans import mixer_names, model_recipes

D, V, G, E, H, W, HIDDEN = 12, 20, 1, 6, 2, 3, 24


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "vocab_size": V,
        "dim": D,
        "context": 10,
        "stack": [{"layers": ["token-shift", f"window:{W}", "full"]}],
        "attention": {"heads": H, "kv_heads": G, "rope": {"dims": 2}},
        "mlp": {"width": 2},
    }
    return make_plan(ModelRecipe.model_validate(values | changes))


def test_flops_count_matrix_products_windows_at_their_span_and_the_head() -> None:
    mlp = 2 * 2 * D * HIDDEN
    maps = 2 * (2 * D * D + 2 * G * E * D)
    scores = [2 * 2 * D * span for span in (W + 1, 10)]
    assert plan().flops_per_token == 3 * 2 * D * D + 3 * mlp + 2 * maps + sum(scores) + 2 * V * D


def test_flops_of_a_loop_are_those_of_its_visits_while_parameters_count_once() -> None:
    once = plan(stack=[{"layers": ["full", "token-shift"]}])
    twice = plan(stack=[{"layers": ["full", "token-shift"], "loops": 2}])
    head = 2 * V * D
    assert twice.flops_per_token - head == 2 * (once.flops_per_token - head)
    assert twice.parameter_count == once.parameter_count
    assert (
        twice.weight_blocks == 2
        and len(twice.layers) == 4
        and twice.visits() == {"blocks.0": 2, "blocks.1": 2}
    )
    assert twice.decode_state_bytes() == 2 * once.decode_state_bytes()


def test_decode_state_is_rings_of_window_plus_one_and_vectors_for_shifts() -> None:
    assert plan().decode_state_bytes() == 4 * (D + 2 * G * E * (W + 1) + 2 * G * E * 10)
    assert plan().decode_state_bytes("bfloat16") == 2 * (D + 2 * G * E * (W + 1) + 2 * G * E * 10)
    extra = plan(
        bigram={"enabled": True},
        smear={"enabled": True},
        document_attention="within",
        sidecar={"enabled": True, "layers": [0, 2], "width": 5},
        attention={"heads": H, "kv_heads": G, "kv_shift": True, "rope": {"dims": 2}},
    )
    added = 8 + 4 * D + 8 + 4 * 2 * 2 * 5 + 4 * 2 * 2 * G * E
    assert extra.decode_state_bytes() == plan().decode_state_bytes() + added


def test_every_optional_part_adds_exactly_its_parameters() -> None:
    base = plan().parameter_count
    rope = {"dims": 2}
    heads: dict[str, Any] = {"heads": H, "kv_heads": G, "rope": rope}
    added: dict[int, dict[str, Any]] = {
        50 * 7 + D * 7 + 1: {"bigram": {"enabled": True, "buckets": 50, "width": 7}},
        60 * D + 1: {"bigram": {"enabled": True, "buckets": 60, "width": D, "projection": False}},
        D: {"smear": {"enabled": True}},
        1 * D: {"skips": {"enabled": True}},
        V * 5 + G * E * 5 + 2: {"value_embedding": {"enabled": True, "layers": [1, 2], "width": 5}},
        V * D: {"tied": False},
        3 * D * 4 + 4 * 3 + D + 4: {"sidecar": {"enabled": True, "layers": [1], "width": 4}},
        2 * (G + 2 * G + H): {
            "attention": heads | {"k_gain": True, "kv_shift": True, "local_value": True}
        },
        -2 * H: {"attention": heads | {"q_gain": None}},
        -3 * 2 * D: {"residual_mix": {"enabled": False}},
        0: {"mtp": {"heads": 3}},
    }
    for count, change in added.items():
        assert plan(**change).parameter_count - base == count, change


def test_scalars_per_virtual_layer_follow_the_visits() -> None:
    looped = plan(stack=[{"layers": ["full"], "loops": 3}], scalars="virtual")
    names = [p.name for p in looped.parameters if p.component in ("scales", "residual_mix")]
    assert names == [
        f"vlayers.{i}.{n}" for i in range(3) for n in ("attn_scale", "mlp_scale", "resid_mix")
    ]
    assert [p.name for p in looped.parameters if "q_gain" in p.name] == [
        f"vlayers.{i}.q_gain" for i in range(3)
    ]


@pytest.mark.parametrize(
    ("layers", "pop", "pushed", "popped"),
    [
        (5, "early", [0, 1], [2, 3]),
        (5, "late", [0, 1], [3, 4]),
        (4, "early", [0, 1], [2, 3]),
        (1, "late", [], []),
    ],
)
def test_skips_pair_the_first_half_with_the_second(
    layers: int, pop: str, pushed: list[int], popped: list[int]
) -> None:
    found = plan(stack=[{"layers": [f"full*{layers}"]}], skips={"enabled": True, "pop": pop}).layers
    assert [layer.index for layer in found if layer.push] == pushed
    assert [layer.index for layer in found if layer.pop is not None] == popped
    assert [layer.pop for layer in found if layer.pop is not None] == list(range(len(popped)))


def test_sites_are_numbered_by_depth_whatever_order_they_are_listed_in() -> None:
    layers = plan(sidecar={"enabled": True, "layers": [2, 0]}).layers
    assert [layer.sidecar_site for layer in layers] == [0, None, 1]


def test_xsa_reaches_the_attention_layers_among_the_last_n() -> None:
    heads = {"heads": H, "kv_heads": G, "rope": {"dims": 2}}
    stack = [{"layers": ["full", "token-shift", "full", "token-shift"]}]
    assert [layer.xsa for layer in plan(stack=stack, attention=heads | {"xsa_last": 3}).layers] == [
        0,
        0,
        1,
        0,
    ]
    assert [
        layer.xsa for layer in plan(stack=stack, attention=heads | {"xsa_layers": [0]}).layers
    ] == [1, 0, 0, 0]


def test_an_unknown_mixer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown mixer 'mamba' in blocks\.0; known: full, token-shift, window"
    ):
        plan(stack=[{"layers": ["mamba"]}])


@settings(max_examples=40, deadline=None)
@given(model=model_recipes())
def test_totals_are_the_sums_over_specs_and_names_are_unique(model: ModelRecipe) -> None:
    found = make_plan(model)
    assert [layer.mixer for layer in found.layers] == mixer_names(
        model.model_dump(mode="json")["stack"]
    )
    names = [p.name for p in found.parameters]
    assert len(set(names)) == len(names)
    assert len({entry.name for entry in found.state}) == len(found.state)
    assert found.parameter_count == sum(p.size for p in found.parameters if p.role is not Role.HEAD)
    per_layer = [layer_spec(model, layer) for layer in found.layers]
    assert (
        sum(product.flops for spec in per_layer for product in spec.matmuls) < found.flops_per_token
    )
    assert found.decode_state_bytes("float16") <= found.decode_state_bytes("float32")
    pushes, pops = (
        sum(layer.push for layer in found.layers),
        sum(layer.pop is not None for layer in found.layers),
    )
    assert pushes == pops == (len(found.layers) // 2 if model.skips.enabled else 0)
