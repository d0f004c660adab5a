"""Continuations: any prompt, constant state, text that is always complete Unicode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines import plain
from niblick.engine import GREEDY, Sampling, continue_batch, continue_tokens, start_text
from niblick.engine.base import Engine
from niblick.errors import NiblickError
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.text.tokenizer import load_tokenizer

TINY = [
    "model.dim=32",
    "model.context=24",
    "model.attention.heads=2",
    "model.attention.kv_heads=1",
    "model.attention.rope.dims=8",
    "model.vocab_size=260",
    "model.document_mask=true",
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    recipe = load_recipe("token-shift", TINY)
    model = LanguageModel(recipe.model).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


class Script(Engine):
    """Plays back given tokens whatever it is told."""

    name = "script"
    vocab_size = 260
    slots = 1
    columns = 1000

    def __init__(self, tokens: list[int]) -> None:
        self._tokens, self._at = tokens, 0

    def reset(self, slot, *, at=0):
        self._at = -1

    def advance(self, slots, tokens, wanted):
        self._at += 1

    def rows(self, count):
        raise NotImplementedError

    def logits(self, slot):
        return np.eye(260, dtype=np.float32)[self._tokens[self._at]]


def play(data: bytes, *, end: int = 1, **options) -> tuple[list[str], str]:
    engine = Script([byte + 4 for byte in data] + [end] * 8)
    text = start_text(
        engine, load_tokenizer("bytes"), "", GREEDY, max_tokens=len(data) + 4, **options
    )
    return list(text), text.finish


@pytest.mark.parametrize("prompt", ["", "plain", "naïve café 日本語 🐎", "\u0000\r\n\t", "x" * 200])
def test_any_unicode_prompt_of_any_length_gives_a_continuation(model, prompt):
    text = start_text(
        plain(model), load_tokenizer("bytes"), prompt, GREEDY, max_tokens=5, across_documents=True
    )
    pieces = list(text)
    assert "".join(pieces) == text.text
    assert len(text.tokens) == 5


def test_greedy_output_is_the_argmax_of_the_whole_sequence_at_every_step(model):
    engine, tokens = plain(model), [1, 70, 80]
    found = list(continue_tokens(engine, tokens, GREEDY, max_tokens=15))
    for token in found:
        assert int(model.logits(torch.tensor([tokens]))[0, -1].argmax()) == token
        tokens.append(token)


def test_state_does_not_grow_with_the_text(model):
    engine = plain(model)
    list(continue_tokens(engine, [1] * 100, GREEDY, max_tokens=60))
    held = [array.nbytes for array in engine._memory[0].arrays.values()]
    assert sum(held) <= engine.state_bytes == model.plan.decode_state_bytes()


def test_a_seed_repeats_its_text_and_another_seed_does_not(model):
    runs = [
        list(continue_tokens(plain(model), [1], Sampling(seed=seed), max_tokens=20))
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_batch_gives_what_its_prompts_give_alone(model):
    prompts = [[1, 9], [1, 50, 60, 70, 80], [1]]
    batch = continue_batch(plain(model, slots=3), prompts, Sampling(seed=5), max_tokens=12)
    alone = [
        list(continue_tokens(plain(model), prompt, Sampling(seed=5 + i), max_tokens=12))
        for i, prompt in enumerate(prompts)
    ]
    assert batch == alone


def test_characters_come_out_whole():
    pieces, finish = play("añ日🐎!".encode())
    assert pieces == ["a", "ñ", "日", "🐎", "!"]
    assert finish == "document"


def test_a_character_that_never_ends_becomes_the_replacement_character():
    assert play(b"ok\xf0\x9f")[0] == ["o", "k", "\ufffd"]


def test_text_ends_before_a_stop_string_that_spans_tokens():
    assert play(b"one\n\ntwo", stop=["\n\n"]) == (["o", "n", "e"], "stop")


def test_the_start_of_a_stop_string_comes_out_when_it_is_not_completed():
    pieces, finish = play(b"one\n", stop=["\n\n"])
    assert "".join(pieces) == "one\n"
    assert finish == "document"


def test_generation_goes_on_across_documents_when_asked():
    _, finish = play(b"ab", across_documents=True)
    assert finish == "length"


def test_a_tokenizer_larger_than_the_model_is_refused(model):
    with pytest.raises(NiblickError, match="1024 tokens but the model only 260"):
        start_text(plain(model), load_tokenizer("fineweb-1024"), "a", GREEDY, max_tokens=1)


def test_an_empty_prompt_of_tokens_and_foreign_ids_are_refused(model):
    with pytest.raises(NiblickError, match="at least one token"):
        plain(model).read(0, [])
    with pytest.raises(NiblickError, match="token id 260"):
        plain(model).read(0, [1, 260])
