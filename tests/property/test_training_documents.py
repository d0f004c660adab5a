"""Rows packed of whole documents: what a pass holds, and that batches and runs resume."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.data.shards import write_shard
from niblick.errors import DataError
from niblick.recipe import Recipe
from niblick.training import documents
from niblick.training.checkpoint import list_checkpoints
from niblick.training.documents import DocumentRows
from niblick.training.pipeline import Pipeline
from training_runs import digest, run, tiny_dataset, tiny_recipe

BOS = 1


def _shard(folder: Path, lengths: list[int]) -> tuple[Path, np.ndarray]:
    """Documents of these lengths; every token but BOS is its own."""
    numbers = iter(range(2, 60_000))
    parts = [np.array([BOS, *(next(numbers) for _ in range(n - 1))], "<u2") for n in lengths]
    tokens = np.concatenate(parts)
    write_shard(folder / "a.bin", tokens)
    return folder / "a.bin", tokens


def _one_pass(path: Path, tokens: np.ndarray, length: int, seed: int, skip: int = 0) -> np.ndarray:
    rows = DocumentRows([path], [len(tokens)], length=length, batch=1, seed=seed, bos_id=BOS)
    found = []
    while rows.passes <= skip:
        row = rows.draw()
        if rows.passes == skip:
            found.append(row[0])
    return np.stack(found)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=12, max_size=60),
    length=st.integers(8, 30),
    seed=st.integers(0, 9),
)
def test_a_pass_shows_every_token_after_the_one_before_it(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, seed: int
) -> None:
    path, tokens = _shard(tmp_path_factory.mktemp("rows"), lengths)
    rows = _one_pass(path, tokens, length, seed)
    assert rows.shape[1] == length + 1
    pairs = Counter(zip(rows[:, :-1].ravel().tolist(), rows[:, 1:].ravel().tolist(), strict=True))
    assert all(pairs[a, b] for a, b in pairwise(tokens.tolist()) if b != BOS)
    whole = [n for n in lengths if n <= length + 1]
    if len(whole) == len(lengths):
        assert (rows[:, 0] == BOS).all()


def test_passes_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    path, tokens = _shard(tmp_path, list(range(2, 60)))
    first = _one_pass(path, tokens, 64, seed=0)
    assert np.array_equal(first, _one_pass(path, tokens, 64, seed=0))
    assert not np.array_equal(first[:9], _one_pass(path, tokens, 64, seed=1)[:9])
    assert not np.array_equal(first[:9], _one_pass(path, tokens, 64, seed=0, skip=1)[:9])


def test_batches_are_shared_and_resumed_exactly(tmp_path: Path) -> None:
    path, _ = _shard(tmp_path, list(range(2, 60)))

    def pipeline(**more: object) -> Pipeline:
        settings = {"sequence_length": 32, "batch_sequences": 4, "seed": 3, "documents_from": BOS}
        return Pipeline([path], **settings, **more)

    whole = pipeline()
    batches = [whole.next() for _ in range(20)]
    assert whole.passes > 0
    for rank in (0, 1):
        part = pipeline(rank=rank, world_size=2).next()
        assert np.array_equal(part[0], batches[0][0][rank::2])
    before = pipeline()
    for _ in range(7):
        before.next()
    after = pipeline(state=before.state())
    for inputs, targets in batches[7:]:
        found = after.next()
        assert np.array_equal(found[0], inputs) and np.array_equal(found[1], targets)
    with pytest.raises(DataError, match="cannot be resumed"):
        Pipeline([path], sequence_length=32, batch_sequences=4, seed=3, state=before.state())
    with pytest.raises(DataError, match="vocabulary has 50"):
        pipeline(vocab_size=50)


def test_a_row_is_filled_with_whole_documents_where_they_fit(tmp_path: Path) -> None:
    path, tokens = _shard(tmp_path, [16] * 40)
    rows = _one_pass(path, tokens, 63, seed=0)
    assert len(rows) == 10 and sorted(rows.ravel().tolist()) == sorted(tokens.tolist())


def test_long_documents_leave_room_for_others_to_be_packed(tmp_path: Path) -> None:
    path, tokens = _shard(tmp_path, [64] * 600 + [8] * 600)
    rows = _one_pass(path, tokens, 63, seed=0)
    assert len(rows) <= 1.02 * len(tokens) / 64


def test_a_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    dataset, plain = tiny_dataset(tmp_path / "shards"), tiny_recipe()
    rows = plain.data.model_copy(update={"rows": "documents"})
    recipe: Recipe = plain.model_copy(update={"data": rows})
    whole = run(recipe, dataset, tmp_path / "run")
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints[-1].rename(tmp_path / "last")
    again = run(recipe, dataset, tmp_path / "run", resume=True)
    assert len(checkpoints) > 1 and digest(again) == digest(whole)
    assert digest(run(plain, dataset, tmp_path / "plain")) != digest(whole)


def test_more_text_than_memory_should_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokens = _shard(tmp_path, [16] * 40)
    monkeypatch.setattr(documents, "MAX_TOKENS", len(tokens) - 1)
    with pytest.raises(DataError, match=r"set data\.rows = text"):
        _one_pass(path, tokens, 63, seed=0)
