"""`--device`: what is there is taken, what is not is refused in one line; precision follows the
hardware.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from niblick.cli import main
from niblick.errors import NiblickError
from niblick.runtime import World, available_memory, choose_device, choose_precision


def _cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "cards", "rank", "place"),
    [
        (None, 0, 0, "cpu"),
        ("auto", 0, 0, "cpu"),
        ("auto", 2, 3, "cuda:1"),
        ("cuda", 4, 2, "cuda:2"),
        ("cuda:1", 2, 0, "cuda:1"),
        ("cpu", 2, 0, "cpu"),
    ],
)
def test_each_process_gets_what_was_asked_for(monkeypatch, asked, cards, rank, place) -> None:
    _cards(monkeypatch, cards)
    assert choose_device(World(local_rank=rank, device=asked)) == place


@pytest.mark.parametrize(
    ("asked", "cards", "said"),
    [
        ("cuda", 0, "there is no CUDA device here"),
        ("cuda:2", 2, "there is no cuda:2 here: the CUDA devices are cuda:0 to cuda:1"),
        ("cuda:", 2, "device 'cuda:' is unknown; accepted: cpu, cuda, cuda:N, mps, auto"),
        ("cuda:-1", 2, "device 'cuda:-1' is unknown"),
        ("tpu", 2, "device 'tpu' is unknown; accepted: cpu, cuda, cuda:N, mps, auto"),
        ("cpu:0", 0, "device 'cpu:0' is unknown"),
        ("mps", 0, "there is no mps device here"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_one_line(monkeypatch, asked, cards, said) -> None:
    _cards(monkeypatch, cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(NiblickError) as caught:
        choose_device(World(device=asked))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_several_processes_do_not_share_one_named_card(monkeypatch) -> None:
    _cards(monkeypatch, 2)
    with pytest.raises(NiblickError, match="give cuda, and each takes its own"):
        choose_device(World(size=2, device="cuda:0"))


@pytest.mark.parametrize("command", ["train", "eval", "generate", "pack", "ablate"])
def test_every_command_that_computes_takes_a_device_and_refuses_a_missing_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    model = "pocket" if command != "pack" else str(tmp_path)
    more = ["--without", "smear"] if command == "ablate" else []
    with pytest.raises(SystemExit) as ended:
        main([command, model, *more, "--device", "abacus"])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "niblick: device 'abacus' is unknown; accepted: cpu, cuda, cuda:N, mps, auto"
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_bf16_is_taken_only_where_the_hardware_multiplies_it(monkeypatch) -> None:
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", "cuda:0") == "fp32" and asked == [False]
    assert choose_precision("bf16", "cuda:0") == "bf16"
    assert choose_precision("auto", "mps") == "fp32"


def test_free_memory_is_what_the_system_and_the_control_groups_leave(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16 kB\nMemAvailable:       8 kB\n")
    assert available_memory(tmp_path) == 8192
    (tmp_path / "proc/self/mountinfo").write_text(
        "31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("0::/box/job\n")
    inner = tmp_path / "sys/fs/cgroup/box/job"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("100\n")
    assert available_memory(tmp_path) == 8192
    (inner.parent / "memory.max").write_text("5000\n")
    (inner.parent / "memory.current").write_text("1000\n")
    assert available_memory(tmp_path) == 4000
