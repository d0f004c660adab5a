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


def test_a_streamed_preparation_by_worker_processes_and_one_in_parts_are_the_same(
    corpus: Path, tmp_path: Path
) -> None:
    common = ("prepare", corpus, "--stream", "--vocab-size", 300, "--json")
    by_workers = niblick(*common, "--out", tmp_path / "w", "--workers", 2)
    assert by_workers.returncode == 0, by_workers.stderr
    part = niblick(*common, "--out", tmp_path / "p", "--part", "2/2")
    assert json.loads(part.stdout) == {"units": 0, "of": 1, "bytes": 0, "shards": None}
    executor = "concurrent.futures:ThreadPoolExecutor"
    whole = niblick(*common, "--out", tmp_path / "p", "--part", "1/2", "--executor", executor)
    assert whole.returncode == 0, whole.stderr
    files = [sorted((tmp_path / name).iterdir()) for name in "wp"]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert niblick("check", tmp_path / "p").returncode == 0


def test_options_of_streaming_are_refused_where_they_do_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (("--part", "1/2"), "--part goes with a corpus that is streamed"),
        (("--workers", "2"), "or add --stream"),
        (("--stream", "--part", "3/2"), "--part '3/2' is not like 2/4"),
        (("--stream", "--part", "0/2"), "is not like 2/4"),
        (("--stream", "--executor", "os:getcwd"), "gave a str, not a"),
        (("--stream", "--executor", "a:b", "--workers", "2"), "give one"),
        (("--stream", "--field", "body"), "has no text in a field 'body'"),
        (("--stream", "--one-in", "2"), "one-in"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "prepare", str(corpus), "--out", str(tmp_path / "o"), *options])
        assert stopped.value.code == 2
        message_shown = capsys.readouterr().err
        assert message in message_shown and not (tmp_path / "o").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["data", "prepare", "wiki-vital", "--stream", "--out", str(tmp_path / "o")])
    assert stopped.value.code == 2 and "text of your own" in capsys.readouterr().err
