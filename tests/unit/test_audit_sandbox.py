"""Attacks on the sandbox: each program tries one thing that a hostile submission might, and must
not get it.

None of them needs torch, so the whole file takes a few seconds. Where a machine offers no isolation
the attacks that only walls can stop are skipped with that reason; limits and the result channel are
tested everywhere.
"""

from __future__ import annotations

import os
import socket
import textwrap
import time
from pathlib import Path

import pytest

from niblick.audit.sandbox import Job, Limits, Outcome, detect, run
from niblick.audit.sandbox.child import run_in
from niblick.audit.sandbox.isolation import Isolation
from niblick.errors import AuditError

SMALL = Limits(
    cpu_seconds=5,
    wall_seconds=8.0,
    memory_bytes=300_000_000,
    address_bytes=3_000_000_000,
    scratch_bytes=20_000_000,
    file_bytes=10_000_000,
    processes=40,
    output_bytes=2_000_000,
)
walls = pytest.mark.skipif(
    not detect().contained, reason=f"no isolation on this machine: {detect().detail}"
)


def attack(program: str, limits: Limits = SMALL, **files: str) -> Outcome:
    """Imports `program` in the sandbox, with `files` beside it."""
    content = {"attack.py": textwrap.dedent(program).encode()} | {
        name: text.encode() for name, text in files.items()
    }
    return run(
        Job(task="import", arguments={"script": "attack.py"}, files=content),
        trust=True,
        limits=limits,
    )


def said(outcome: Outcome) -> str:
    return outcome.output


def test_an_honest_script_reports_its_import() -> None:
    outcome = attack("print('hello'); x = 1")
    assert outcome.result is not None
    assert outcome.result["ok"]
    assert "hello" in said(outcome)


def test_a_failing_script_is_described_by_type_message_and_line() -> None:
    outcome = attack("x = 1\nraise ValueError('no such thing')\n")
    assert outcome.result is not None
    failure = outcome.result["failure"]
    assert (failure["type"], failure["message"], failure["line"]) == (
        "ValueError",
        "no such thing",
        2,
    )


def test_printing_a_verdict_is_only_output() -> None:
    outcome = attack("""
        print('NIBLICK ' + '0' * 64 + ' 11\\n{"ok": true}')
        raise RuntimeError('real')
    """)
    assert outcome.result is not None
    assert not outcome.result["ok"]


def test_a_forged_frame_on_the_result_pipe_is_refused() -> None:
    outcome = attack("""
        import os
        for fd in range(3, 256):
            try:
                os.write(fd, b'NIBLICK ' + b'0' * 64 + b' 12\\n{"ok": true}')
            except OSError:
                pass
        os._exit(0)
    """)
    assert outcome.result is None
    assert outcome.tampered


def test_an_infinite_loop_ends_at_the_cpu_limit() -> None:
    outcome = attack("while True: pass", Limits(cpu_seconds=1, wall_seconds=20.0))
    assert outcome.result is None
    assert outcome.reason == "cpu"


def test_sleeping_forever_ends_at_the_wall_limit() -> None:
    outcome = attack("import time; time.sleep(1000)", Limits(cpu_seconds=5, wall_seconds=1.0))
    assert outcome.reason == "wall"


def test_a_memory_hog_gets_no_more_than_its_share() -> None:
    outcome = attack("held = []\nwhile True: held.append(bytearray(10_000_000))")
    assert outcome.result is None or outcome.result["failure"]["type"] == "MemoryError"
    assert outcome.reason in {"memory", None}


def test_endless_output_ends_at_its_bound_and_little_is_kept() -> None:
    outcome = attack("import os\nwhile True: os.write(1, b'x' * 1_000_000)")
    assert outcome.reason == "output"
    assert len(outcome.output) <= 40_000


def test_a_script_that_leaves_the_process_has_no_result() -> None:
    outcome = attack("import os; os._exit(0)")
    assert outcome.result is None
    assert outcome.reason is None
    assert outcome.exit == 0


def test_threads_and_exit_handlers_left_behind_do_not_delay_or_speak() -> None:
    started = time.monotonic()
    outcome = attack("""
        import atexit, threading, time
        atexit.register(lambda: print('handler ran'))
        threading.Thread(target=lambda: time.sleep(1000)).start()
    """)
    assert outcome.result is not None
    assert outcome.result["ok"]
    assert "handler ran" not in said(outcome)
    assert time.monotonic() - started < SMALL.wall_seconds


def test_replacing_the_reporters_tools_does_not_change_the_report() -> None:
    outcome = attack("""
        import json, os, hmac
        json.dumps = lambda *a, **k: '{"ok": true}'
        hmac.new = None
        raise KeyError('real')
    """)
    assert outcome.result is None or not outcome.result["ok"]


def test_the_environment_of_the_caller_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    outcome = attack("import os; print(dict(os.environ))")
    assert "hunter2" not in said(outcome)


@walls
def test_the_callers_home_and_files_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("very secret")
    outcome = attack(f"""
        import os
        for path in ({str(secret)!r}, {str(Path.home() / ".ssh")!r}, {str(Path.home() / ".bashrc")!r}, "/etc/shadow"):
            try:
                print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())
            except OSError as error:
                print(path, "refused", type(error).__name__)
    """)
    assert "very secret" not in said(outcome)
    assert said(outcome).count("refused") == 4


@walls
def test_nothing_outside_the_scratch_folder_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / "written"
    outcome = attack(f"""
        import os, sys
        open("inside", "w").write("fine")
        for path in ({str(target)!r}, "/usr/evil", "/evil", "/etc/evil", os.path.dirname(os.__file__) + "/evil.py"):
            try:
                open(path, "w").write("x")
                print("WROTE", path)
            except OSError:
                pass
    """)
    assert outcome.result is not None
    assert outcome.result["ok"]
    assert "WROTE" not in said(outcome)
    assert not target.exists()


@walls
def test_links_planted_in_the_scratch_folder_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("very secret")
    outcome = attack(f"""
        import os
        os.symlink({str(secret)!r}, "link")
        os.symlink("/proc/1/root{secret}", "deep")
        for name in ("link", "deep"):
            try:
                print(open(name).read())
            except OSError:
                pass
    """)
    assert "very secret" not in said(outcome)


def test_no_socket_reaches_the_machine_or_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = attack(f"""
            import socket
            for address in (("127.0.0.1", {port}), ("1.1.1.1", 53)):
                try:
                    socket.create_connection(address, timeout=1)
                    print("CONNECTED")
                except OSError as error:
                    print("refused", error)
        """)
    assert "CONNECTED" not in said(outcome)
    assert said(outcome).count("refused") == 2


@walls
def test_a_fork_bomb_is_contained_and_leaves_nothing() -> None:
    marker = f"bomb-{os.getpid()}"
    outcome = attack(
        f"""
        import os, sys, time
        name = {marker!r}
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
        """,
        Limits(cpu_seconds=2, wall_seconds=3.0, processes=40),
    )
    assert outcome.result is None
    assert not _processes_running("attack.py")


def _processes_running(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if "niblick.audit.inside" in line and "worker" in line and word in line:
            found.append(line)
    return found


@walls
def test_killing_the_parent_and_everybody_else_harms_only_itself() -> None:
    outcome = attack("""
        import os, signal
        for pid in (os.getppid(), 1):
            for sign in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP):
                try:
                    os.kill(pid, sign)
                except OSError:
                    pass
        print("still here", os.getppid())
    """)
    assert outcome.result is not None
    assert "still here 1" in said(outcome)


@walls
def test_native_calls_get_no_further_than_python() -> None:
    outcome = attack("""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for name, call in {
            "unshare": lambda: libc.unshare(0x10000000),
            "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
            "ptrace": lambda: libc.ptrace(16, 1, 0, 0),
            "setuid": lambda: libc.setuid(0) if libc.getuid() else -1,
            "chroot": lambda: libc.chroot(b"/"),
            "memfd": lambda: libc.memfd_create(b"x", 0),
        }.items():
            print(name, "ALLOWED" if call() not in (-1,) else "refused")
    """)
    assert "ALLOWED" not in said(outcome)
    assert said(outcome).count("refused") == 6


@walls
def test_the_supervisors_memory_and_descriptors_cannot_be_opened() -> None:
    outcome = attack("""
        import os
        try:
            descriptors = ["fd/" + name for name in os.listdir("/proc/1/fd")]
        except OSError:
            descriptors = ["fd/3"]
        for name in ("mem", "environ", *descriptors):
            for mode in (os.O_RDONLY, os.O_WRONLY):
                try:
                    os.open("/proc/1/" + name, mode)
                    print("OPENED", name)
                except OSError:
                    pass
    """)
    assert outcome.result is not None
    assert "OPENED" not in said(outcome)


@walls
def test_the_scratch_folder_has_a_size() -> None:
    outcome = attack("""
        try:
            for number in range(100):
                open(f"file{number}", "wb").write(bytes(5_000_000))
            print("WROTE ALL")
        except OSError as error:
            print("full", error)
    """)
    assert "WROTE ALL" not in said(outcome)
    assert "full" in said(outcome)


def test_attempts_at_network_and_programs_are_noted_with_their_line() -> None:
    outcome = attack("""
        import subprocess
        try:
            subprocess.run(["curl", "http://example.org"])
        except OSError:
            pass
    """)
    assert outcome.result is not None
    assert any(
        note.startswith("attack.py:4: starts another program")
        for note in outcome.result["attempts"]
    )


def test_without_isolation_code_is_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Isolation(kind="bare", detail="tried nothing")
    monkeypatch.setattr("niblick.audit.sandbox.child.detect", lambda: bare)
    with pytest.raises(AuditError, match="no isolation here \\(tried nothing\\)"):
        run(Job(task="nothing"))
    assert run(Job(task="nothing"), trust=True).isolation == "bare"


def test_limits_and_the_result_channel_hold_without_walls_too() -> None:
    bare = Isolation(kind="bare")
    loop = Job(task="import", arguments={"script": "a.py"}, files={"a.py": b"while True: pass"})
    assert run_in(bare, loop, Limits(cpu_seconds=1, wall_seconds=20.0)).reason == "cpu"
    honest = Job(task="import", arguments={"script": "a.py"}, files={"a.py": b"x = 1"})
    result = run_in(bare, honest, SMALL).result
    assert result is not None
    assert result["ok"]
