"""The shard file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.data.shards import ShardError, count_tokens, open_shard, write_shard


@given(tokens=st.lists(st.integers(0, 65535), max_size=50))
@settings(max_examples=40, deadline=None)
def test_tokens_come_back_from_a_shard_of_exactly_the_stated_size(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int]
) -> None:
    path = tmp_path_factory.mktemp("shards") / "a.bin"
    write_shard(path, np.array(tokens, dtype=np.int64))
    assert open_shard(path).tolist() == tokens
    assert path.stat().st_size == 1024 + 2 * len(tokens)


def test_the_bytes_are_the_challenge_s_format(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [1, 0x0203])
    data = (tmp_path / "a.bin").read_bytes()
    assert np.frombuffer(data[:12], dtype="<i4").tolist() == [20240520, 1, 2]
    assert not any(data[12:1024]) and data[1024:] == b"\x01\x00\x03\x02"


@pytest.mark.parametrize(
    "change", ["short", "long", "magic", "version", "header", "text", "negative"]
)
def test_a_damaged_shard_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, range(10))
    data = bytearray(path.read_bytes())
    if change == "short":
        del data[-1]
    elif change == "long":
        data += b"\0\0"
    elif change in ("magic", "version"):
        data[0 if change == "magic" else 4] ^= 1
    elif change == "negative":
        data[8:12] = b"\xff" * 4
    else:
        data = bytearray(b"x" * 1000) if change == "header" else bytearray(b"not a shard" * 200)
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"a\.bin"):
        open_shard(path)


def test_ids_that_do_not_fit_and_missing_files_are_refused(tmp_path: Path) -> None:
    for bad in ([65536], [-1], [[1]]):
        with pytest.raises(ShardError):
            write_shard(tmp_path / "a.bin", bad)
    with pytest.raises(ShardError, match="cannot be read"):
        count_tokens(tmp_path / "absent.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_shard_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, [1, 2, 3])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("niblick.files.os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        write_shard(path, [4])
    assert open_shard(path).tolist() == [1, 2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
