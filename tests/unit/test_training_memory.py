"""Memory decides the micro-batch: as many rows as fit, the same gradients for every choice, and
running out of memory named as what it is.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niblick.errors import CapacityError
from niblick.training import passes
from niblick.training.memory import SAFE, choose_rows, halvings, is_out_of_memory
from training_runs import run, tiny_dataset, tiny_recipe


class Limited(TorchDispatchMode):
    """Counts the bytes of live tensors that operators make, and refuses those beyond `limit`."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit, self.live, self.most = limit, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor):
                self._count(t.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._free, key, size)
        if self.live > self.limit:
            raise torch.OutOfMemoryError(f"tried to hold {self.live} bytes")
        self.most = max(self.most, self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class SimulatedMemory:
    """A device whose memory holds `limit` bytes of what operators make."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def free(self) -> int:
        return int(self.limit / SAFE) + 1

    def peak(self, work: Callable[[], None]) -> int:
        with Limited(self.limit) as mode:
            work()
        return mode.most


class Blind(SimulatedMemory):
    """One that cannot be measured, only tried."""

    def peak(self, work: Callable[[], None]) -> None:
        work()


@pytest.mark.parametrize(("rows", "sizes"), [(16, [16, 8, 4, 2, 1]), (12, [12, 6, 3, 1]), (1, [1])])
def test_every_size_divides_the_batch_and_is_at_most_half_of_the_one_before(rows, sizes) -> None:
    assert list(halvings(rows)) == sizes


@pytest.mark.parametrize("kind", [SimulatedMemory, Blind])
@pytest.mark.parametrize(("fit", "rows"), [(1, 1), (3, 2), (4, 4), (15, 8), (16, 16), (99, 16)])
def test_the_largest_size_that_memory_holds_is_chosen(kind, fit: int, rows: int) -> None:
    tried = []

    def work(count: int) -> None:
        tried.append(count)
        torch.zeros(1000 * count, dtype=torch.uint8)

    limit = 1000 * fit + 400

    def limited(count: int) -> None:
        with Limited(limit):
            work(count)

    assert choose_rows(16, limited, kind(limit), confirm=limited).rows == rows
    assert tried[-1] == rows
    if kind is SimulatedMemory:
        assert len(tried) == 3, "two small passes tell; the third confirms"


def test_where_not_one_row_fits_the_error_says_so() -> None:
    def work(rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CapacityError, match="does not hold one sequence"):
        choose_rows(8, work, Blind(100), confirm=work)
    with pytest.raises(ZeroDivisionError):
        choose_rows(8, lambda rows: 1 // 0, Blind(100))


def test_running_out_of_memory_is_told_from_other_errors_even_when_wrapped() -> None:
    wrapped = RuntimeError("backend failed")
    wrapped.__cause__ = torch.OutOfMemoryError("x")
    assert is_out_of_memory(wrapped) and is_out_of_memory(RuntimeError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def _simulate(monkeypatch: pytest.MonkeyPatch, memory: object) -> None:
    monkeypatch.setattr(passes, "device_memory", lambda device: memory)
    monkeypatch.setattr(passes, "SMALL", 64)  # so that a batch of 128 tokens is measured


def test_a_run_takes_what_memory_holds_keeps_it_and_trains_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, recipe = tiny_dataset(tmp_path / "shards"), tiny_recipe(duration="3 steps")
    whole = run(recipe, dataset, tmp_path / "whole")
    _simulate(monkeypatch, SimulatedMemory(1e9))
    two = run(recipe, dataset, tmp_path / "two")
    _simulate(monkeypatch, SimulatedMemory(1))
    with pytest.raises(CapacityError, match="does not hold one sequence"):
        run(recipe, dataset, tmp_path / "none")
    kept = json.loads((tmp_path / "two" / "environment.json").read_text())["micro_batch"]
    assert (kept["tokens"], kept["chosen"]) == (64, "measured")
    assert kept["row_bytes"] > 1000
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_resumed_run_keeps_its_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(tmp_path / "shards")
    _simulate(monkeypatch, SimulatedMemory(1e9))
    short, long = (tiny_recipe(duration=f"{steps} steps") for steps in (5, 10))
    run(short, dataset, tmp_path / "run")
    _simulate(monkeypatch, SimulatedMemory(1))  # nothing would fit, were it measured again
    assert run(long, dataset, tmp_path / "run", resume=True).steps == 10
    kept = json.loads((tmp_path / "run" / "environment.json").read_text())["micro_batch"]
    assert (kept["tokens"], kept["chosen"]) == (64, "kept")


def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, recipe = tiny_dataset(tmp_path / "shards"), tiny_recipe(duration="4 steps")
    whole = run(recipe, dataset, tmp_path / "whole")
    original = passes.CompiledLoss.backward

    def short_of_memory(self: Any, inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, inputs, *rest)

    monkeypatch.setattr(passes.CompiledLoss, "backward", short_of_memory)
    with pytest.warns(RuntimeWarning, match="micro-batches of 64 tokens from here on, 128 before"):
        halved = run(recipe, dataset, tmp_path / "halved")
    noted = json.loads((tmp_path / "halved" / "environment.json").read_text())["micro_batch"]
    assert noted["tokens"] == 64
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(halved.tensors[name], tensor, atol=1e-4, rtol=1e-3)
    with pytest.raises(CapacityError, match=r"out of memory on cpu with micro-batches of 128 to"):
        run(tiny_recipe(micro_batch_tokens=128), dataset, tmp_path / "fixed")
