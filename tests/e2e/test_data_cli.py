"""`niblick data` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from niblick.cli import main


def niblick(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "niblick", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    lines = [
        json.dumps({"text": f"The {number}th hill of the land\nis high."}) for number in range(80)
    ]
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_prepared_data_passes_the_check_and_damaged_data_does_not(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    made = niblick("prepare", corpus, "--out", out, "--vocab-size", 300, "--json")
    assert made.returncode == 0, made.stderr
    summary = json.loads(made.stdout)
    assert (
        summary["vocab_size"] == 300
        and sum(split["documents"] for split in summary["splits"].values()) == 80
    )
    sound = niblick("check", out, "--json")
    assert sound.returncode == 0 and json.loads(sound.stdout)["ok"] is True
    shard = out / "niblick_train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    broken = niblick("check", out)
    assert broken.returncode == 1 and "niblick_train_000000.bin" in broken.stdout


def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ("prepare", "no-such-corpus", "--out", tmp_path / "o"),
        ("check", tmp_path / "absent"),
        ("fetch", "wikipedia"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["data", *map(str, arguments)])
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("niblick: ") and message.count("\n") == 1
