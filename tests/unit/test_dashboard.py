"""The dashboard: it follows runs as they are written, believes nothing they hold, and answers to
this machine only.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niblick.cli import main
from niblick.dashboard import Dashboard
from niblick.dashboard.curves import POINTS, Columns, Metrics
from niblick.dashboard.runs import MAX_RUNS, Watch
from niblick.data.dataset import Dataset
from niblick.errors import NiblickError
from niblick.files import locked
from training_runs import run, tiny_dataset, tiny_recipe

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


def _row(step: int, **more: object) -> str:
    row = {"step": step, "seconds": step / 2, "tokens": 10 * step, "loss": 5 / step}
    return json.dumps(row | more) + "\n"


def _make(folder: Path, rows: str = "", recipe: str = 'name = "one"') -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe)
    (folder / "metrics.jsonl").write_text(rows)
    return folder


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Dashboard]:
    dashboard = Dashboard([tmp_path])
    thread = threading.Thread(target=dashboard.serve)
    thread.start()
    yield dashboard
    dashboard.close()
    thread.join()
    dashboard.release()


def _get(
    board: Dashboard, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", board.port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{board.port}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer, data


def _json(board: Dashboard, path: str) -> Any:
    answer, data = _get(board, path)
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
    return json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_real_run_is_shown_with_its_curves(
    board: Dashboard, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset: Dataset = tiny_dataset(tmp_path_factory.mktemp("data") / "shards")
    run(tiny_recipe(), dataset, tmp_path / "group" / "seed-0")
    (found,) = _json(board, "/api/runs")["runs"]
    assert (found["id"], found["recipe"], found["step"]) == ("group/seed-0", "tiny", 12)
    assert found["state"] == "packing" and found["fraction"] == 1  # trained, and no card yet
    details = _json(board, "/api/run?run=group/seed-0")
    rows = (tmp_path / "group" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    assert details["training"]["loss"] == losses
    assert {"grad_norm", "lr_matrix", "resident_bytes", "bpb"} <= set(details["training"])
    assert len(details["validation"]["validation_bpb"]) == 4
    assert dict(details["machine"])["torch"]


def test_curves_grow_as_a_run_writes_and_start_anew_when_it_is_rewound(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.refresh()
    assert metrics.training.length == 0
    path.write_text(_row(1) + _row(2)[:20])
    metrics.refresh()
    first = metrics.revision
    assert metrics.training.length == 1, "a line that is cut off waits for its end"
    with path.open("a") as file:
        file.write(_row(2)[20:] + '{"step": 2, "seconds": 1, "tokens": 20, "validation_bpb": 3}\n')
    metrics.refresh()
    assert metrics.training.points()["step"] == [1, 2] and metrics.validation.length == 1
    assert metrics.revision != first
    (tmp_path / "new").write_text(_row(1))
    (tmp_path / "new").replace(path)
    metrics.refresh()
    assert metrics.training.points()["step"] == [1] and metrics.validation.length == 0


@given(st.integers(1, 3 * POINTS), st.integers(1, 3 * POINTS))
def test_points_of_long_curves_are_means_and_lose_no_row(length: int, late: int) -> None:
    columns = Columns()
    for i in range(length):
        columns.append({"x": float(i)} | ({"y": 2.0} if i >= late else {}))
    points = columns.points()
    xs = points["x"]
    assert len(xs) == min(length, POINTS) and xs == sorted(xs, key=lambda x: x or 0.0)
    if length <= POINTS:
        assert xs == list(range(length))
    assert set(points.get("y", [])) <= {None, 2.0}
    assert ("y" in points) == (length > late)


def test_what_runs_hold_is_bounded_checked_and_shown_as_text(
    board: Dashboard, tmp_path: Path
) -> None:
    lines = [
        _row(1, bpb=float("nan"), grad_norm=float("inf"), x="text", y=True, z=10**400),
        "[" * 5000 + "\n",
        '"text"\n',
        "\xff\xfe\n",
        _row(2, **{f"k{i}": i for i in range(200)}),
    ]
    folder = _make(tmp_path / "bad", "".join(lines), f'name = "{HOSTILE}"\nseed = "x"')
    (folder / "card.json").write_text(
        json.dumps({"packed_bpb": "no", "ledger": {"parts": {HOSTILE: 5, "b": "c"}}, "data": []})
    )
    (folder / "environment.json").write_text(json.dumps({"processor": [HOSTILE] * 99}))
    _make(tmp_path / "worse", _row(1), "\0 not toml")
    _make(tmp_path / "huge", "".join(_row(step, loss=1.7e308) for step in range(1, 1500)))
    runs = {each["id"]: each for each in _json(board, "/api/runs")["runs"]}
    assert runs["bad"]["step"] == 2 and runs["bad"]["packed_bpb"] is None
    assert "\u202e" not in runs["bad"]["recipe"] and runs["worse"]["recipe"] == ""
    assert None in _json(board, "/api/run?run=huge")["training"]["loss"]
    details = _json(board, "/api/run?run=bad")
    assert len(details["training"]) <= 32 and "x" not in details["training"]
    assert list(details["bytes"].values()) == [5] and len(json.dumps(details)) < 100_000


def test_the_state_of_a_run_follows_its_lock_its_card_and_its_last_line(tmp_path: Path) -> None:
    training = '[training]\nduration = "10 steps"\n'
    folder = _make(tmp_path / "run", _row(3), 'name = "a"\n' + training)
    watch = Watch([tmp_path])

    def state() -> str:
        watch.refresh()
        return str(watch.runs["run"].summary()["state"])

    assert state() == "training"
    for name in ("metrics.jsonl", "recipe.toml"):
        os.utime(folder / name, (1e9, 1e9))
    assert state() == "stopped"
    if Path("/proc/locks").is_file():
        with locked(folder / ".lock"):
            assert state() == "training"
    (folder / "card.json").write_text('{"packed_bpb": 1.5}')
    assert state() == "scored"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(_row(10))
    os.utime(folder / "card.json", (1e9, 1e9))
    assert state() == "packing", "the card is of an earlier run"


def test_links_are_not_followed_and_of_too_many_runs_the_newest_stay(tmp_path: Path) -> None:
    outside = _make(tmp_path / "outside" / "run", _row(1))
    root = tmp_path / "root"
    for i in range(MAX_RUNS + 3):
        _make(root / f"r{i}")
    (root / "link").symlink_to(outside.parent, target_is_directory=True)
    _make(root / "a" / "b" / "c" / "too-deep")
    secret = tmp_path / "secret.json"
    secret.write_text('{"packed_bpb": 1.5}')
    (root / "r9" / "card.json").symlink_to(secret)
    (root / "r8" / "metrics.jsonl").unlink()
    os.mkfifo(root / "r8" / "metrics.jsonl")
    watch = Watch([root])
    watch.refresh()
    assert all(watch.runs[name].summary()["packed_bpb"] is None for name in ("r8", "r9"))
    assert len(watch.runs) == MAX_RUNS and watch.left_out == 3
    assert not any("link" in name or "too-deep" in name for name in watch.runs)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:1"},
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_only_this_machine_and_this_page_get_data(
    board: Dashboard, headers: dict[str, str]
) -> None:
    answer, data = _get(board, "/api/runs", **headers)
    assert answer.status == 403 and b"runs" not in data
    assert _get(board, "/api/runs", Host=f"localhost:{board.port}")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/run",
        "/api/run?run=nope",
        "/api/run?run=../outside",
        "/api/run?" + "run=a&" * 40,
        "/api/nope?run=a",
        "/../server.py",
        "/page/app.js",
        "/%2e%2e/recipe.toml",
        "//evil.example/",
        "/api/run?run=" + quote(HOSTILE),
    ],
)
def test_what_is_not_there_is_not_found(board: Dashboard, tmp_path: Path, path: str) -> None:
    _make(tmp_path / "a", _row(1))
    _get(board, "/api/runs")
    answer, data = _get(board, path)
    assert answer.status == 404 and data == b"not found\n"


def test_every_answer_carries_the_policy_and_the_page_loads_nothing_from_elsewhere(
    board: Dashboard,
) -> None:
    for path in ("/", "/app.js", "/charts.js", "/style.css", "/api/runs", "/nope"):
        for method in ("GET", "HEAD"):
            answer, data = _get(board, path, method)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert bool(data) == (method == "GET")
    assert _get(board, "/", "POST")[0].status == 501
    pages = resources.files("niblick.dashboard").joinpath("page")
    for page in pages.iterdir():
        text = page.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)//.*", "", text), page.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    html = pages.joinpath("index.html").read_text("utf-8")
    assert not re.search(r"<script(?! src=)|<style|\son\w+=|\sstyle=", html)


def test_runs_that_cannot_be_compared_say_why(board: Dashboard, tmp_path: Path) -> None:
    _make(tmp_path / "a", _row(1))
    _get(board, "/api/runs")
    assert "holds no score" in _json(board, "/api/compare?run=a")["error"]


def test_a_missing_folder_or_a_port_in_use_is_one_line(
    board: Dashboard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NiblickError, match="choose another with --port"):
        Dashboard([tmp_path], board.port)
    with pytest.raises(SystemExit) as end:
        main(["dashboard", str(tmp_path / "none")])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("niblick: no folder of runs at")


def test_a_variant_of_a_sweep_is_no_run_but_its_seeds_are(tmp_path: Path) -> None:
    for name in ("baseline", "wide"):
        _make(tmp_path / name / "seed-0", _row(1))
        (tmp_path / name / "recipe.toml").write_text('name = "one"')
    watch = Watch([tmp_path])
    watch.refresh()
    assert sorted(watch.runs) == ["baseline/seed-0", "wide/seed-0"]


def test_the_list_of_runs_says_how_far_each_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = 'name = "one"\nseed = 3\n[training]\nduration = "4 steps"\n'
    held_out = {"step": 2, "seconds": 1, "tokens": 20, "validation_loss": 4, "validation_bpb": 2.5}
    _make(tmp_path / "half", _row(2) + json.dumps(held_out) + "\n", recipe)
    for name, bpb, valid in (("good", 1.25, True), ("better", 1.125, True), ("bad", 1.0, False)):
        folder = _make(tmp_path / name, _row(4), recipe)
        card = {"packed_bpb": bpb, "artifact_bytes": 1234, "valid": valid}
        (folder / "card.json").write_text(json.dumps(card))
    done = _make(tmp_path / "whole", _row(4), recipe)
    for name in ("metrics.jsonl", "recipe.toml"):
        os.utime(done / name, (1_000_000, 1_000_000))
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path), "--sort", "bpb"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "recipe", "seed", "state", "bpb", "bytes", "changed"]
    told = {line.split()[0]: line for line in lines}
    assert list(told) == ["better", "good", "bad", "half", "whole"]
    assert "trained" in told["whole"] and "d ago" in told["whole"]
    assert "50 %" in told["half"] and "~2.5000" in told["half"] and "not valid" in told["bad"]
    assert told["good"].split() == ["good", "one", "3", "scored", "1.2500", "1,234", "now"]
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path), "--json"])
    assert {row["id"] for row in json.loads(capsys.readouterr().out)} == set(told)


@pytest.mark.parametrize("given", [["none"], [".", "--sort", "size"]])
def test_a_list_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["runs", str(tmp_path / given[0]), *given[1:]])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("niblick: ") and told.count("\n") == 1
