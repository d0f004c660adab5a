"""Hostile folders: each tries to take a reader's time, memory or files. Reading ends, says what it
could not read, calls nothing clean that it did not follow, and does the paths beside no harm.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from niblick.audit import conduct
from niblick.audit.conduct import audit
from niblick.audit.snapshot import take
from niblick.audit.types import Report
from niblick.cli.audit import audit_all
from niblick.errors import AuditError
from unit.audit_programs import PLAIN, TRAIN_FIRST, program

CLEAN = program(PLAIN, main="evaluate(net, held, s)")
BREACH = program(PLAIN, TRAIN_FIRST, main="fit_held(net, held, s)\nevaluate(net, held, s)")


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the real budgets is enough for the programs here."""
    small = replace(conduct.READING, cpu_seconds=9, memory_bytes=700_000_000)
    monkeypatch.setattr(conduct, "READING", small)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An entry that is clean by itself."""
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "train_gpt.py").write_text(CLEAN)
    return entry


def read(path: Path) -> Report:
    """The report from reading alone, as the command makes it."""
    return audit(path, run_code=False)


def weighty(report: Report) -> list[str]:
    """What holds a report."""
    return [f.evidence for f in report.findings if f.verdict == "hold_unclear"]


def test_the_entry_is_clean_by_itself(folder: Path) -> None:
    assert read(folder).verdict == "clean_neural"


BOMBS = {
    "bytes": "exec(bytes(6 * 10**9))",
    "power": "exec(str(pow(3, 10**9)))",
    "doubling": "s = 'x'\nfor _ in range(90):\n    s = s + s\nexec(s)",
    "nesting": f"exec({'(' * 5000}1{')' * 5000})",
    "sum": f"x = {'1+' * 60_000}1\nexec(str(x))",
    "backtracking": "import re\nexec(re.sub('(a+)+$', '', 'a' * 64 + 'b'))",
}

QUIET = {
    "shift": "x = 1 << 10**11\nexec(str(x))",
    "repetition": "x = 'x' * 10**11\nexec(x)",
    "loop": "n = 0\nwhile True:\n    n += 1\nexec(str(n))",
}
"""Bombs that a reader need not meet: for these only the bounds are tested."""


@pytest.mark.parametrize("bomb", [*BOMBS.values(), *QUIET.values()], ids=[*BOMBS, *QUIET])
def test_a_bomb_in_a_script_ends_within_its_limits(folder: Path, bomb: str) -> None:
    (folder / "train_gpt.py").write_text(f"{bomb}\n{CLEAN}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = read(folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < conduct.READING.cpu_seconds + 3
    assert bomb in QUIET.values() or not report.verdict.startswith("clean_")


@pytest.mark.parametrize("bomb", ["fetch", "record"])
def test_what_was_found_before_a_bomb_stays_found(folder: Path, bomb: str) -> None:
    (folder / "train_gpt.py").write_text(BREACH)
    assert read(folder).verdict == "flag_prequant_ttt"
    if bomb == "record":
        (folder / "submission.json").write_text('{"val_bpb": 1.1}')
        (folder / "train.log").write_text(f"params: {'9' * 400}\n")
    else:
        (folder / "helper.py").write_text("exec(bytes(6 * 10**9))\n")
    assert read(folder).verdict == "flag_prequant_ttt"


DOCUMENTS: dict[str, dict[str, str]] = {
    "blank lines": {"README.md": "# Entry\n" + "\n" * 30_000 + "```\n"},
    "open fences": {"README.md": "```\n" * 20_001 + "`" * 50_000},
    "doubling": {"run.sh": "A=aaaaaaaa\n" + "A=$A$A\n" * 60 + "python train_gpt.py\n"},
    "nines": {"submission.json": '{"val_bpb": 1.1}', "train.log": f"params: {'9' * 400}\n"},
    "nested": {"submission.json": "[" * 200_000},
    "numbers": {"submission.json": f'{{"val_bpb": {"9" * 10_000}}}'},
    "one line": {"train.log": "val_bpb: " * 400_000, "submission.json": "{}"},
}


@pytest.mark.parametrize("files", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_bomb_in_a_document_changes_nothing_or_is_named(
    folder: Path, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    report = read(folder)
    assert report.verdict == "clean_neural" or (
        report.verdict == "hold_unclear" and len(weighty(report)) == 1
    )


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path)[-100:])


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(6 * 10**9)


ODD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pipe": ("run.sh", os.mkfifo),
    "pipe for a script": ("train_gpt.py", os.mkfifo),
    "folder": ("run.sh", Path.mkdir),
    "link to a device": ("helper.py", lambda path: path.symlink_to("/dev/zero")),
    "link to a file": ("README.md", lambda path: path.symlink_to("/etc/passwd")),
    "link to a folder": ("kit.py", lambda path: path.symlink_to("/usr")),
    "link to itself": ("around.sh", lambda path: path.symlink_to(path)),
    "huge and empty": ("helper.py", _sparse),
    "escape sequence": ("run\x1b[2J\n.sh", lambda path: path.write_text("echo")),
    "no text": ("b\udcff.py", lambda path: path.write_text("x = 1")),
}


@pytest.mark.parametrize(("name", "make"), ODD.values(), ids=ODD)
def test_what_is_no_plain_file_is_named_once_and_never_opened(
    folder: Path, name: str, make: Callable[[Path], object]
) -> None:
    if name == "train_gpt.py":
        (folder / name).unlink()
    make(folder / name)
    report = read(folder)
    assert report.verdict == "hold_unclear"
    told = [f for f in report.findings if f.rule == "not-read"]
    assert len(told) == 1
    assert told[0].evidence.isprintable()


@pytest.mark.parametrize("kind", ["logs", "data", "model.bin"])
def test_links_to_what_is_no_program_are_not_followed_and_do_not_hold(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.log").write_text("secret")
    (folder / kind).symlink_to(outside)
    taken = take(folder)
    assert set(taken.bundle.sizes()) == {"train_gpt.py"}
    assert read(folder).verdict == "clean_neural"


def test_a_link_in_place_of_the_path_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "linked.py").symlink_to(folder / "train_gpt.py")
    for name in ("linked", "linked.py"):
        report = read(tmp_path / name)
        assert report.verdict == "hold_unclear" and "is a link" in weighty(report)[0]


def test_a_folder_that_cannot_be_opened_is_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.open

    def refuses(path: object, *rest: int, **options: int) -> int:
        if path == folder:
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", refuses)
    report = read(folder)
    assert report.verdict == "hold_unclear" and "Permission denied" in weighty(report)[0]


def test_more_than_can_be_looked_at_is_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niblick.audit.snapshot.MOST_FILES", 20)
    for number in range(40):
        (folder / f"part{number}.py").write_text("x = 1\n")
    report = read(folder)
    assert report.verdict == "hold_unclear"
    assert sum(f.rule == "not-read" for f in report.findings) <= 21
    monkeypatch.setattr("niblick.audit.snapshot.MOST_SEEN", 10)
    assert "entries" in weighty(read(folder))[0]


def test_only_the_first_part_of_a_huge_log_is_taken(folder: Path) -> None:
    with (folder / "train.log").open("wb") as file:
        file.write(b"val_bpb: 1.2\n")
        file.truncate(6 * 10**9)
    taken = take(folder)
    assert taken.bundle.sizes()["train.log"] == 6 * 10**9
    report = read(folder)
    assert report.verdict == "clean_neural"
    assert any(f.rule == "not-read" and f.verdict is None for f in report.findings)


def test_a_lone_script_takes_the_code_beside_it_and_nobodys_private_files(tmp_path: Path) -> None:
    for name in (
        "train.py",
        "helper.py",
        "kernels.cu",
        "notes.txt",
        ".env",
        ".ssh/id_rsa",
        "photos/a.py",
        "core/metric.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("from core import metric\n")
    taken = take(tmp_path / "train.py")
    assert set(taken.bundle.sizes()) == {"train.py", "helper.py", "kernels.cu", "core/metric.py"}
    (tmp_path / "submission.json").write_text("{}")
    whole = take(tmp_path / "train.py").bundle.sizes()
    assert {"notes.txt", "photos/a.py"} <= whole.keys()
    assert not {".env", ".ssh/id_rsa"} & whole.keys()


def test_a_script_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    with pytest.raises(AuditError, match=r"--script other.py: .*its scripts: train_gpt.py"):
        audit(folder, run_code=False, script="other.py")
    for outside in ("../entry/train_gpt.py", "/etc/passwd"):
        with pytest.raises(AuditError, match="no such script"):
            audit(folder, run_code=False, script=outside)


def test_hostile_paths_do_the_others_no_harm_and_order_and_number_decide_nothing(
    folder: Path, tmp_path: Path
) -> None:
    paths = [folder]
    for name, text in {
        "bomb": f"exec(bytes(6 * 10**9))\n{CLEAN}",
        "breach": BREACH,
        "again": CLEAN,
        "deep": "x = " + "(" * 3000 + ")" * 3000,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train_gpt.py").write_text(text)
        paths.append(tmp_path / name)
    together = audit_all(paths, run_code=False, trust=False, script=None)
    alone = [read(path) for path in paths]
    assert [r.verdict for r in together] == [r.verdict for r in alone]
    assert [r.findings for r in together] == [r.findings for r in alone]
    assert [together[n].verdict for n in (0, 2, 3)] == [
        "clean_neural",
        "flag_prequant_ttt",
        "clean_neural",
    ]


def test_a_report_of_the_reading_child_that_is_no_report_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = conduct.run_in
    for forged in (
        {"findings": [{"rule": 1}]},
        {"findings": [], "understood": True, "record": []},
        {"findings": "x" * 5, "understood": True},
        {},
    ):
        monkeypatch.setattr(
            conduct, "run_in", lambda *a, said=forged: replace(plain(*a), result=said)
        )
        assert read(folder).verdict == "hold_unclear"
