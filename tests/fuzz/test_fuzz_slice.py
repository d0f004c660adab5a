"""A slice of the fuzzing: a few cases of each target, and every case that once failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fuzz.__main__ import check_case, kept_cases
from fuzz.cases import TARGETS, make_case
from fuzz.harness import Result, broken_promises, server
from fuzz.seeds import Seeds, make_seeds

CASES = [(name, seed) for name in TARGETS for seed in range(4)]
SOUND = Result(["plan", "r.toml"], 2, "", "niblick: r.toml is not valid TOML\n", 0.1, 1000)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    return make_seeds(tmp_path_factory.mktemp("fuzz") / "seeds")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Result]]:
    with server(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("name", TARGETS)
def test_any_input_meets_the_promise_of_the_command_line(
    run: Callable[..., Result], seeds: Seeds, name: str
) -> None:
    wanted = dict.fromkeys((n, s) for n, s in [*kept_cases(), *CASES] if n == name)
    found = {seed: check_case(run, name, seed, seeds) for _, seed in wanted}
    assert {seed: (case[1], case[0].err) for seed, case in found.items() if case[1]} == {}


@pytest.mark.parametrize(
    ("change", "left", "problem"),
    [
        ({"code": -9}, [], "exit code -9"),
        ({"code": 70, "err": "Traceback (most recent call last):\n"}, [], "traceback"),
        ({"err": "niblick: a\nniblick: b\n"}, [], "2 lines"),
        ({"err": "Killed\n"}, [], "no message"),
        ({"err": f"niblick: {'x' * 300}\n"}, [], "a line of 309"),
        ({"seconds": 100.0}, [], "100 s"),
        ({"peak": 1 << 33}, [], "MB of memory"),
        ({}, ["new"], "output of a command that failed"),
        ({"code": 0}, [".m.nib.12.tmp"], "half-written"),
    ],
)
def test_every_broken_promise_is_seen(
    change: dict[str, object], left: list[str], problem: str
) -> None:
    assert broken_promises(SOUND, []) == []
    assert problem in "; ".join(broken_promises(replace(SOUND, **change), left))  # type: ignore[arg-type]


def test_a_case_is_the_same_each_time(seeds: Seeds, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        arguments = make_case("recipes", 7, tmp_path / name, seeds)
        contents.append((arguments, (tmp_path / name / "r.toml").read_bytes()))
    assert contents[0] == contents[1]
