"""`niblick doctor`: a page about the machine, also without torch, with cures for what is slow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from niblick import doctor
from niblick.cli import main
from niblick.cli.doctor import page


def shown(capsys: pytest.CaptureFixture, *options: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--seconds", "0", *options])
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_the_page_names_the_machine_and_the_path_of_every_command(capsys) -> None:
    found = json.loads(shown(capsys, "--json"))
    assert set(found["paths"]) == {"train", "pack", "eval", "generate", "serve"}
    assert found["processor"]["threads"] >= 1
    assert "pocket" not in found, "nothing is measured in no time"
    text = shown(capsys)
    for told in (found["processor"]["name"], found["torch"]["version"], *found["paths"].values()):
        assert told in text


def test_it_works_without_torch_and_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "has_lab", lambda: False)
    monkeypatch.setattr(doctor, "_torch", lambda: pytest.fail("torch was asked"))
    found = doctor.examine(0.02)
    assert found["torch"] is None and "train" not in found["pocket"]
    assert found["pocket"]["generate"]["tokens_per_second"] > 0
    assert "pip install 'niblick[lab]'" in found["paths"]["train"]
    assert any("pip install 'niblick[lab]'" in each["cure"] for each in found["advice"])
    assert any("not installed" in line for line in page(found))


CARD = {"name": "Card", "memory_bytes": 24 * 10**9, "capability": "sm_75", "bf16": False}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"processor": {"available": 2, "processors": 64}}, "leaves 2 of 64 processors"),
        ({"processor": {"threads": 1}}, "one thread is used"),
        ({"processor": {"busy": 3.2}}, "keeps about 3.2 processors busy"),
        ({"libraries": {"engine": "missing"}}, "no compiled engine"),
        ({"memory": {"available_bytes": 10**9}}, "1.0 GB of memory are left"),
        ({"cache": "/locked"}, "/locked cannot be written"),
        ({"nvidia_driver": True}, "has no CUDA"),
        ({"torch": {"bf16": False}}, "does not multiply bfloat16"),
        ({"torch": {"gpus": [CARD]}}, "Card does not multiply bfloat16"),
    ],
)
def test_whatever_is_slow_comes_with_a_cure(
    change: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_existing", lambda path: path)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: str(path) != "/locked")
    found = {
        "processor": {"available": 8, "processors": 8, "threads": 8, "busy": 0.0},
        "memory": {"available_bytes": 10**10},
        "libraries": {"engine": "compiled here"},
        "torch": {"version": "2", "cuda": None, "threads": 8, "bf16": True, "gpus": []},
        "nvidia_driver": False,
        "cache": "/tmp",
    }
    assert list(doctor._advice(found)) == []
    for key, value in change.items():
        found[key] = found[key] | value if isinstance(value, dict) else value
    (advice,) = doctor._advice(found)
    assert what in advice.what and advice.cure
