"""Going on with many sequences at once gives each the tokens that it gets alone."""

from __future__ import annotations

import numpy as np
import pytest

from engines import native, plain
from niblick.engine import Sampling, continue_tokens, likelihoods, sequence
from niblick.engine.library import ENGINE
from niblick.recipe import load_recipe
from served import SMALL


@pytest.fixture(scope="module")
def model():
    from niblick.model import LanguageModel

    return LanguageModel(load_recipe("token-shift", SMALL).model, seed=3).eval()


def engines(model, **options):
    library = ENGINE.obtain()
    return [plain(model, **options)] + ([native(model, library, **options)] if library else [])


def draws(seed):
    filters = [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.5}]
    return Sampling(temperature=(0.0, 0.7, 1.3)[seed % 3], seed=seed, **filters[seed % 4])


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_tokens_are_those_of_one_sequence_alone(model, steps):
    prompts = [[1, *range(5, 5 + 3 * i)] for i in range(6)]
    for engine, alone in zip(engines(model, slots=6), engines(model), strict=True):
        rows = np.concatenate(
            [
                sequence(5 - i, draws(i), max_tokens=4 * i, vocab=260, end=9 if i == 4 else None)
                for i in range(6)
            ]
        )
        for i, prompt in enumerate(prompts):
            engine.read(5 - i, prompt)
        found = np.concatenate([engine.extend(rows, steps) for _ in range(-(-20 // steps))])
        assert not rows["left"].any()
        for i, prompt in enumerate(prompts):
            wanted = list(continue_tokens(alone, prompt, draws(i), max_tokens=4 * i))
            if i == 4 and 9 in wanted:
                wanted = wanted[: wanted.index(9) + 1]
            assert [t for t in found[:, i].tolist() if t >= 0] == wanted


def test_the_likeliest_come_first_and_all_sum_to_one():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    for row, found in zip(logits, likelihoods(logits, np.array([4, 0, 49]), 50), strict=True):
        values = [value for _, value in found.others]
        assert values == sorted(values, reverse=True)
        assert abs(np.exp(values).sum() - 1) < 1e-9
        assert [i for i, _ in found.others[:1]] == [int(row.argmax())]
    assert likelihoods(logits, np.array([4, 0, 49]), 0)[1].others == []
