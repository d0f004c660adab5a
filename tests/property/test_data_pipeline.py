"""The batch stream: every block once a pass, the same for any workers and ranks, and resumable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.data.shards import ShardError, write_shard
from niblick.errors import DataError
from niblick.training.pipeline import Pipeline
from niblick.training.sampler import Mix, Rows, Sampler

sizes_of_shards = st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(
    lambda sizes: max(sizes) > 9
)
MIX = Mix(shards=(2, 5), alpha=(0.9, 0.5))


def draws(sampler: Sampler, batches: int) -> list[Rows]:
    return [sampler.draw() for _ in range(batches)]


@given(
    sizes=sizes_of_shards,
    length=st.integers(1, 9),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=80, deadline=None)
def test_every_block_is_drawn_exactly_once_a_pass(
    sizes: list[int], length: int, batch: int, seed: int
) -> None:
    sampler = Sampler(sizes, length=length, batch=batch, seed=seed, mix=MIX)
    blocks: list[tuple[int, int]] = []
    for number in range(3):  # passes, which may end inside a batch
        expected = sampler.pass_blocks
        while len(blocks) < expected:
            rows = sampler.draw()
            blocks += zip(rows.shards.tolist(), rows.starts.tolist(), strict=True)
        whole, blocks = blocks[:expected], blocks[expected:]
        assert len(set(whole)) == expected
        for shard, size in enumerate(sizes):
            starts = sorted(start for owner, start in whole if owner == shard)
            assert (
                starts == list(range(starts[0], size - length, length))
                if starts
                else size <= length
            )
            assert not starts or starts[0] <= length
        if sampler.passes != number + 1:
            # the pass ended with a batch, or a batch held more than a pass: its size is not known
            # any more
            return


@given(
    sizes=sizes_of_shards,
    length=st.integers(1, 9),
    batch=st.integers(1, 7),
    total=st.none() | st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_every_block_lies_within_its_shard_with_its_last_target(
    sizes: list[int], length: int, batch: int, total: int | None
) -> None:
    for rows in draws(Sampler(sizes, length=length, batch=batch, seed=1, mix=MIX, total=total), 30):
        assert len(rows.shards) == len(rows.starts) == batch
        assert (rows.starts >= 0).all()
        assert (rows.starts + length + 1 <= np.array(sizes)[rows.shards]).all()


def test_a_batch_draws_from_more_shards_as_training_goes_on() -> None:
    sampler = Sampler([10_000] * 40, length=10, batch=32, seed=0, mix=Mix(), total=100)
    spread = [len(set(rows.shards.tolist())) for rows in draws(sampler, 101)]
    assert spread[0] == 8 and spread[-1] == 32 and spread == sorted(spread)


def test_shards_with_more_left_are_drawn_more_often() -> None:
    sampler = Sampler([100_000, 10_000], length=10, batch=8, seed=0, mix=Mix(shards=(1, 1)))
    drawn = Counter(int(rows.shards[0]) for rows in draws(sampler, 300))
    assert drawn[0] > 5 * drawn[1] > 0


def test_passes_differ_in_order_and_phase() -> None:
    sampler = Sampler([1001], length=10, batch=100, seed=0, mix=MIX)
    first, second = draws(sampler, 2)
    assert first.starts.tolist() != second.starts.tolist()


def shards_in(folder: Path, sizes: list[int]) -> list[Path]:
    paths = [folder / f"{number}.bin" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        write_shard(path, number * 1000 + np.arange(size))
    return paths


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards_in(tmp_path_factory.mktemp("shards"), [500, 130, 9, 0, 77, 300])


def stream(shards: list[Path], batches: int, **settings: object) -> list[np.ndarray]:
    arguments = {
        "sequence_length": 8,
        "batch_sequences": 6,
        "seed": 5,
        "mix_start": 2,
        "mix_end": 4,
        **settings,
    }
    pipeline = Pipeline(shards, **arguments)  # type: ignore[arg-type]
    try:
        return [np.stack(pipeline.next()) for _ in range(batches)]
    finally:
        pipeline.close()


def test_targets_are_the_inputs_one_token_on(shards: list[Path]) -> None:
    for inputs, targets in stream(shards, 60):
        assert inputs.shape == targets.shape == (6, 8) and inputs.dtype == np.int64
        assert np.array_equal(targets, inputs + 1)  # shards hold consecutive numbers


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"workers": 3, "prefetch": 7}, {"prefetch": 1}]
)
def test_the_stream_does_not_depend_on_workers_or_prefetch(
    shards: list[Path], settings: dict[str, int]
) -> None:
    for expected, found in zip(stream(shards, 50), stream(shards, 50, **settings), strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_batch_of_one_process_without_overlap(
    shards: list[Path], world: int
) -> None:
    whole = stream(shards, 40)
    shares = [stream(shards, 40, rank=rank, world_size=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        together = np.empty_like(batch)
        for rank in range(world):
            together[:, rank::world] = shares[rank][step]
        assert np.array_equal(together, batch)


@given(stop=st.integers(0, 45), total=st.none() | st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_a_resumed_stream_continues_bit_for_bit(
    shards: list[Path], stop: int, total: int | None
) -> None:
    arguments = {
        "sequence_length": 8,
        "batch_sequences": 6,
        "seed": 9,
        "mix_start": 2,
        "total_batches": total,
    }
    pipeline = Pipeline(shards, **arguments)  # type: ignore[arg-type]
    for _ in range(stop):
        pipeline.next()
    state = pipeline.state()
    assert all(type(value) is int for value in state.values())
    resumed = Pipeline(shards, state=state, workers=0, **arguments)  # type: ignore[arg-type]
    assert (
        resumed.passes == pipeline.passes
        and resumed.tokens_seen == pipeline.tokens_seen == stop * 48
    )
    for _ in range(10):
        assert np.array_equal(np.stack(pipeline.next()), np.stack(resumed.next()))
    assert resumed.state() == pipeline.state()
    pipeline.close()
    resumed.close()


def test_a_state_of_other_data_or_settings_is_refused(shards: list[Path]) -> None:
    pipeline = Pipeline(shards, sequence_length=8, batch_sequences=6, seed=5, workers=0)
    for change in ({"seed": 6}, {"batch_sequences": 12}, {"sequence_length": 4}):
        arguments = {"sequence_length": 8, "batch_sequences": 6, "seed": 5, **change}
        with pytest.raises(DataError, match=next(iter(change))):
            Pipeline(shards, state=pipeline.state(), **arguments)
    with pytest.raises(DataError, match="shards is 5, in the saved state 6"):
        Pipeline(shards[:5], sequence_length=8, batch_sequences=6, seed=5, state=pipeline.state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_token_outside_the_vocabulary_is_refused_with_its_shard(
    shards: list[Path], workers: int
) -> None:
    stream(shards, 60, workers=workers, vocab_size=5300)
    with pytest.raises(
        DataError, match=r"5.bin holds token 52\d\d near \d+, but the vocabulary has 5200"
    ):
        stream(shards, 60, workers=workers, vocab_size=5200)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("damage", ["vanished", "truncated", "grown"])
def test_a_shard_that_goes_away_reaches_the_trainer_as_an_error(
    tmp_path: Path, workers: int, damage: str
) -> None:
    paths = shards_in(tmp_path, [200])
    pipeline = Pipeline(paths, sequence_length=8, batch_sequences=4, seed=0, workers=workers)
    pipeline.next()
    if damage == "vanished":
        paths[0].unlink()
    elif damage == "truncated":
        paths[0].write_bytes(paths[0].read_bytes()[:-50])
    else:
        write_shard(paths[0], range(300))
    with pytest.raises(ShardError, match=r"0\.bin"):
        for _ in range(20):
            pipeline.next()
    with pytest.raises(DataError, match="closed"):
        pipeline.next()


def test_data_too_small_for_one_sequence_and_impossible_shares_are_refused(tmp_path: Path) -> None:
    paths = shards_in(tmp_path, [8, 5])
    with pytest.raises(DataError, match="13 tokens in 2 shards is too small"):
        Pipeline(paths, sequence_length=8, batch_sequences=1, seed=0)
    with pytest.raises(DataError, match="multiple of the number of ranks"):
        Pipeline(paths, sequence_length=4, batch_sequences=3, seed=0, world_size=2)


def test_a_corpus_of_one_block_repeats_it_and_a_batch_larger_than_the_corpus_is_refused(
    tmp_path: Path,
) -> None:
    paths = shards_in(tmp_path, [9])
    assert all(
        batch[0].tolist() == [list(range(8))] for batch in stream(paths, 5, batch_sequences=1)
    )
    with pytest.raises(DataError, match="holds 1 sequences of 8 tokens, fewer than one batch of 2"):
        stream(paths, 1, batch_sequences=2)


def test_the_device_feeder_gives_the_same_batches_as_tensors(shards: list[Path]) -> None:
    torch = pytest.importorskip("torch")
    from niblick.training.device import DeviceFeeder

    arguments = {
        "sequence_length": 8,
        "batch_sequences": 6,
        "seed": 5,
        "mix_start": 2,
        "mix_end": 4,
    }
    feeder = DeviceFeeder(Pipeline(shards, **arguments), "cpu")  # type: ignore[arg-type]
    for expected in stream(shards, 5):
        inputs, targets = feeder.next()
        assert inputs.dtype == torch.int64
        assert np.array_equal(np.stack([inputs.numpy(), targets.numpy()]), expected)
    assert feeder.state() == feeder.pipeline.state()
    feeder.pipeline.close()
