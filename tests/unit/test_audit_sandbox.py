"""Attacks on the sandbox: each program tries one thing that a hostile submission might, and must
not get it.

None of them needs torch, so the whole file takes a few seconds. Where a machine offers no isolation
the attacks that only walls can stop are skipped with that reason; limits and the result channel are
tested everywhere.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from niblick.audit.inside import launch, seccomp
from niblick.audit.inside import walls as inner
from niblick.audit.sandbox import Bundle, Isolation, Job, Limits, Outcome, detect, run
from niblick.audit.sandbox.child import run_in
from niblick.audit.sandbox.isolation import python_command as plain
from niblick.audit.sandbox.isolation import visible_paths
from niblick.errors import AuditError

SMALL = Limits(
    cpu_seconds=5,
    idle_seconds=3.0,
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


def attack(program: str, limits: Limits = SMALL) -> Outcome:
    """Imports `program` in the sandbox."""
    return run(job(textwrap.dedent(program)), trust=True, limits=limits)


def job(program: str) -> Job:
    """The order to import `program`."""
    bundle = Bundle({"attack.py": program.encode()})
    return Job(task="smoke", arguments={"script": "attack.py"}, bundle=bundle)


def said(outcome: Outcome) -> str:
    return outcome.output


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are of Linux")
def test_the_walls_stand_wherever_namespaces_can_be_had() -> None:
    ask = "from niblick.audit.inside import libc; libc.unshare(libc.NAMESPACES)"
    search = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asked = subprocess.run([sys.executable, "-c", ask], env={**os.environ, **search}, check=False)
    assert detect().contained or asked.returncode != 0, detect().detail


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


def test_anything_else_on_the_result_pipe_makes_the_report_void() -> None:
    forged = """
        import os
        for fd in range(3, 256):
            try:
                os.write(fd, b'{"ok": true}END')
            except OSError:
                pass
    """
    for end in ("", "\\n"):
        outcome = attack(forged.replace("END", end))
        assert outcome.result is None
        assert outcome.tampered


def test_a_script_cannot_say_how_its_own_process_ended() -> None:
    outcome = attack("""
        import os
        for fd in range(3, 256):
            try:
                os.write(fd, b'{"reason": null, "exit": 0}\\n')
            except OSError:
                pass
        os._exit(9)
    """)
    assert outcome.exit == 9


def test_an_infinite_loop_ends_at_the_cpu_limit() -> None:
    assert attack("while True: pass", Limits(cpu_seconds=1)).reason == "cpu"


def test_loops_in_many_processes_share_one_cpu_limit() -> None:
    outcome = attack(
        """
        import os, time
        for _ in range(3):
            os.fork()
        while True:
            if time.process_time() > 1.0:
                os.write(1, b"one whole second ")
                while True:
                    pass
        """,
        Limits(cpu_seconds=2),
    )
    assert outcome.reason == "cpu"
    assert said(outcome).count("second") <= 2


def test_waiting_for_nothing_ends_at_the_idle_limit() -> None:
    outcome = attack("import time; time.sleep(1000)", Limits(idle_seconds=0.5))
    assert outcome.reason == "idle"


def test_a_memory_hog_gets_no_more_than_its_share() -> None:
    outcome = attack("held = []\nwhile True: held.append(b'x' * 10_000_000)")
    failure = (outcome.result or {}).get("failure", {}).get("type")
    assert outcome.reason == "memory" or failure == "MemoryError"


@walls
def test_memory_counts_for_all_processes_together() -> None:
    outcome = attack("""
        import os, time
        for _ in range(12):
            if os.fork() == 0:
                held = b"x" * 60_000_000
                time.sleep(2)
                os._exit(0)
        time.sleep(2)
    """)
    assert outcome.reason == "memory"


@walls
def test_memory_that_no_process_shows_cannot_be_had() -> None:
    outcome = attack("""
        import mmap, os, socket
        for name, call in {
            "shared": lambda: mmap.mmap(-1, 1 << 20),
            "zero": lambda: mmap.mmap(os.open("/dev/zero", os.O_RDWR), 1 << 20),
            "sockets": socket.socketpair,
            "local": lambda: socket.socket(socket.AF_UNIX),
            "memfd": lambda: os.memfd_create("x"),
        }.items():
            try:
                call()
                print(name, "ALLOWED")
            except OSError:
                print(name, "refused")
    """)
    assert "ALLOWED" not in said(outcome)
    assert said(outcome).count("refused") == 5


@walls
def test_empty_files_are_bounded_in_number() -> None:
    outcome = attack("""
        import os
        made = 0
        for folder in ("/submission", "/tmp", "/dev/shm"):
            try:
                for number in range(100_000):
                    os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY))
                    made += 1
            except OSError:
                pass
        print("made", made)
    """)
    assert int(said(outcome).split()[1]) < 70_000


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
    outcome = attack("""
        import atexit, threading, time
        atexit.register(lambda: print('handler ran'))
        threading.Thread(target=lambda: time.sleep(1000)).start()
    """)
    assert outcome.result is not None
    assert outcome.result["ok"]
    assert "handler ran" not in said(outcome)


def test_replacing_the_reporters_tools_does_not_change_the_report() -> None:
    outcome = attack("""
        import json, os
        json.dumps = lambda *a, **k: '{"ok": true}'
        os.write = lambda *a: 1
        os._exit = lambda code: None
        raise KeyError('real')
    """)
    assert outcome.result is not None
    assert not outcome.result["ok"]


def test_the_environment_of_the_caller_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    outcome = attack("import os; print(dict(os.environ))")
    assert "hunter2" not in said(outcome)


@walls
def test_the_callers_home_and_files_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("very secret")
    at_home = [str(Path.home() / name) for name in (".ssh", ".bashrc")]
    outcome = attack(f"""
        import os
        for path in {[str(secret), *at_home, "/etc/shadow"]!r}:
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
        packages = os.path.dirname(os.__file__)
        for path in ({str(target)!r}, "/usr/evil", "/evil", "/etc/evil", packages + "/evil.py"):
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
    outcome = attack(
        """
        import os, time
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
        """,
        Limits(cpu_seconds=1, idle_seconds=1.0, processes=40),
    )
    assert outcome.reason in {"cpu", "idle", "processes"}
    assert not any("niblick.audit.inside" in line for line in _below(os.getpid()).values())


@walls
def test_processes_that_come_and_go_are_counted() -> None:
    outcome = attack(
        """
        import os, signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            try:
                if os.fork() == 0:
                    os._exit(0)
            except BlockingIOError:  # the kernel's own limit came first
                pass
        """,
        Limits(cpu_seconds=60, processes=8),
    )
    assert outcome.reason == "processes"


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
def test_the_supervisor_cannot_be_slowed_down() -> None:
    outcome = attack("""
        import os
        for name, call in {
            "idle": lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
            "processor": lambda: os.sched_setaffinity(1, {0}),
            "nice": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
            "user": lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19),
            "all": lambda: os.setpriority(os.PRIO_USER, 0, 19),
        }.items():
            try:
                call()
                print(name, "ALLOWED")
            except OSError:
                print(name, "refused")
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    """)
    assert outcome.result is not None
    assert outcome.result["ok"]
    assert "ALLOWED" not in said(outcome)
    assert said(outcome).count("refused") == 5


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


@walls
def test_no_id_of_the_code_is_that_of_root() -> None:
    outcome = attack("""
        import os
        print(*os.getresuid(), *os.getresgid())
        for change in (os.setuid, os.setgid):
            try:
                change(0)
                print("BECAME ROOT")
            except OSError:
                pass
    """)
    assert "BECAME" not in said(outcome)
    assert "0" not in said(outcome).split()


@walls
def test_a_path_in_any_script_becomes_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("josé", "два слова", "tab\there", "back\\slash", "plain")
    shown = [tmp_path / name for name in names]
    for folder in shown:
        folder.mkdir()
        folder.chmod(0o777)
    listed = [*visible_paths(), *map(str, shown)]
    monkeypatch.setattr("niblick.audit.sandbox.isolation.visible_paths", lambda: listed)
    outcome = attack(f"""
        import os
        for folder in {[str(folder) for folder in shown]!r}:
            assert os.path.isdir(folder)
            try:
                open(folder + "/evil", "w")
                print("WROTE", folder)
            except OSError:
                print("refused")
    """)
    assert "WROTE" not in said(outcome)
    assert said(outcome).count("refused") == len(shown)
    assert not any(list(folder.iterdir()) for folder in shown)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts of Linux")
def test_a_mount_that_is_not_read_only_is_a_refusal() -> None:
    with pytest.raises(OSError, match="did not become read-only"):
        inner.verify()  # of this process, where the machine's own files can be written


def test_a_wall_that_is_missing_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "program", lambda: None)
    with pytest.raises(OSError, match="no system-call filter"):
        launch._inside_namespaces({})


def test_a_worker_that_cannot_be_started_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["/nowhere/python"]
    monkeypatch.setattr(
        "niblick.audit.sandbox.isolation.python_command",
        lambda entry, packages: command if entry == "worker" else plain(entry, packages=packages),
    )
    outcome = attack("print('ran')")
    assert (outcome.reason, outcome.result) == ("sandbox", None)
    assert "cannot be started" in (outcome.error or "")


def test_without_isolation_code_is_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Isolation(kind="bare", detail="tried nothing")
    monkeypatch.setattr("niblick.audit.sandbox.child.detect", lambda: none)
    with pytest.raises(AuditError, match="no isolation here \\(tried nothing\\)"):
        run(Job(task="nothing"))
    assert run(Job(task="nothing"), trust=True).isolation == "bare"


bare = Isolation(kind="bare")


@pytest.mark.skipif(os.geteuid() == 0, reason="code is never run as user 0: see the next test")
def test_limits_and_the_result_channel_hold_without_walls_too(tmp_path: Path) -> None:
    assert run_in(bare, job("while True: pass"), Limits(cpu_seconds=1)).reason == "cpu"
    result = run_in(bare, job("x = 1"), SMALL).result
    assert result is not None
    assert result["ok"]
    mark = tmp_path / "mark"
    daemon = f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(2)
                open({str(mark)!r}, "w")
            os._exit(0)
    """
    run_in(bare, job(textwrap.dedent(daemon)), SMALL)
    time.sleep(2.5)
    assert not mark.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only user 0 is refused")
def test_user_0_runs_nothing_as_itself_without_walls_either() -> None:
    outcome = run_in(bare, job("import os; print('as', *os.getresuid())"), SMALL)
    assert outcome.reason == "sandbox" or "0" not in said(outcome).split()


@walls
def test_an_interruption_ends_what_runs(tmp_path: Path) -> None:
    (tmp_path / "looping.py").write_text("while True: pass\n")
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from niblick.audit.sandbox import detect
from niblick.cli import main
detect()
print("ready", flush=True)
main(["audit", {str(tmp_path / "looping.py")!r}])
"""
    search = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **search}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    workers: set[int] = set()
    try:
        assert process.stdout.readline() == b"ready\n"
        while process.poll() is None and len(workers) < 2:  # the one that reads, the one that runs
            below = _below(process.pid).items()
            workers |= {pid for pid, line in below if "niblick.audit.inside.worker" in line}
            time.sleep(0.02)
        started = _below(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(workers) == 2 and not started.keys() & _everything().keys()


def _below(parent: int) -> dict[int, str]:
    """Processes started by `parent`, directly or not: id and command line."""
    everything, found = _everything(), {parent: ""}
    for pid in sorted(everything):
        if everything[pid][0] in found:
            found[pid] = everything[pid][1]
    return {pid: line for pid, line in found.items() if pid != parent}


def _everything() -> dict[int, tuple[int, str]]:
    """Every living process: its id to its parent's id and its command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if fields[0] != b"Z":
            found[int(entry.name)] = (int(fields[1]), line)
    return found
