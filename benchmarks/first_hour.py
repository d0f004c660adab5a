"""The first hour of a stranger, by script: `python benchmarks/first_hour.py [--out FILE]`

Clones this tree into a temporary folder and types the commands of the README and docs there, one
after the other, with an empty cache. docs/first-hour.md gets a section with each command, its
output (long ones shortened, saying by how much), its seconds and its longest silence. What ends
with another exit code than it should is marked, and the script ends with 1.

    --without-compiler   PATH has no gcc, cc, clang, c++, g++, clang++, tcc
    --busy               beside one process that computes without pause
    --rehearse           short trainings (steps, not the recipe's ten minutes), to try the script
    --packages FOLDER    a site-packages that set-up uses instead of downloading; it says so
    --only PATTERN       only steps whose command holds PATTERN (and the set-up)
    --python FILE        the Python that `make` is given
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILERS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|tcc|c89|c99)(-[\d.]+)?$")
HEAD, TAIL = 14, 8  # lines of an output that are shown
LONGEST = 160  # characters of a line
_ABOUT_INDEX = re.compile("WARNING: Location '")  # what pip says of where it looks for packages
_REHEARSED = " (rehearsal)"


@dataclass(frozen=True)
class Step:
    """One command as typed, why, the exit code it should have, and its short form."""

    why: str
    command: str
    code: int = 0
    short: str | None = None  # in a rehearsal


@dataclass
class Outcome:
    """What a command printed, when, and how it ended."""

    step: Step
    typed: str
    seconds: float = 0.0
    first: float | None = None  # seconds to the first output
    silence: float = 0.0  # the longest time without output
    code: int = 0
    lines: list[str] = field(default_factory=list)


SERVER = (
    "niblick serve pocket --port {port} & sleep 0.2; "
    "curl -s --retry 40 --retry-connrefused --retry-delay 1 http://127.0.0.1:{port}/v1/completions"
    " -H 'content-type: application/json'"
    ' -d \'{"prompt": "The river", "max_tokens": 24}\'; echo;'
    " kill %1; wait %1"
)
DASHBOARD = (
    "niblick dashboard runs --port {port} & sleep 0.2; curl -s --retry 40 --retry-connrefused"
    " --retry-delay 1 http://127.0.0.1:{port}/ | grep -o '<title>.*</title>'; kill %1; wait %1"
)
FIRST = "runs/first"
STEPS = (
    Step("Set up: the virtual environment and everything in it.", "make setup"),
    Step("The first word.", 'niblick generate pocket --prompt "The river" --max-tokens 40'),
    Step(
        "A prompt through a pipe.", 'echo "The city of" | niblick generate pocket --max-tokens 24'
    ),
    Step(
        "Lines one after another.",
        "printf 'The moon\\n\\n/quit\\n' | niblick generate pocket --interactive --max-tokens 16",
    ),
    Step("How well does it know a text of mine?", "niblick eval pocket --data CONTRIBUTING.md"),
    Step(
        "The same from Python.",
        'python -c \'import niblick; model = niblick.load("pocket"); print(model);'
        ' print(model.generate("The river", max_tokens=20))\'',
    ),
    Step("What is there?", "niblick"),
    Step("Which recipes?", "niblick recipes"),
    Step("What does one build?", "niblick plan pocket"),
    Step("Which techniques can be left out?", "niblick techniques pocket"),
    Step(
        "Train the default: the README's first command.",
        "make train",
        0,
        f'niblick train pocket --duration "20 steps" --out {FIRST}',
    ),
    Step("Its card again.", "niblick card $(ls -td runs/*/ | head -1)"),
    Step("Another score of it.", "niblick eval $(ls -td runs/*/ | head -1) --mode document"),
    Step(
        "My own text: these docs.",
        "niblick train pocket --data docs --out runs/own",
        0,
        'niblick train pocket --data docs --duration "10 steps" --out runs/own',
    ),
    Step("It writes like them.", 'niblick generate runs/own --prompt "The model" --max-tokens 40'),
    Step("How well does it know what it has not seen?", "niblick eval runs/own --data README.md"),
    Step(
        "A second seed, a minute long.",
        "niblick train pocket --duration 60s --seed 1 --out runs/minute",
        0,
        'niblick train pocket --duration "10 steps" --seed 1 --out runs/minute',
    ),
    Step(
        "Is it worse than the first?",
        "niblick compare $(ls -td runs/pocket*/ runs/first/ 2>/dev/null | head -1) runs/minute"
        " --html compare.html",
    ),
    Step("A smaller file of it.", "niblick pack runs/minute --max-bytes 800000 --out small.nib"),
    Step("Serve the shipped model, and ask it.", SERVER, 143),
    Step(
        "A page that runs it in a browser, offline.",
        "niblick export pocket --to html --out page.html",
    ),
    Step("A submission of the minute's run.", "niblick export runs/minute --out submission"),
    Step("Does it score what it claims?", "niblick verify submission"),
    Step("Is its score valid?", "niblick audit submission"),
    Step("Live curves of all runs.", DASHBOARD, 143),
    Step("A typing error in a command.", "niblick genrate pocket", 2),
    Step("In a recipe.", "niblick train poket", 2),
    Step("In a key.", "niblick train pocket --set model.dmi=96", 2),
    Step("A text that is not there.", "niblick eval pocket --data no-such.txt", 2),
    Step("An option that would do nothing.", "niblick generate pocket --temperature 0 --seed 3", 2),
)


def run(step: Step, typed: str, folder: Path, environment: dict[str, str]) -> Outcome:
    """Run one command in `folder` and watch when it says something."""
    found, began = Outcome(step, typed), time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", typed],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        data = watch(process, found, began)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)  # what was started ends with the script
        raise
    found.code = process.wait()
    found.seconds = time.monotonic() - began
    found.lines = data.decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n").split("\n")
    return found


def watch(process: subprocess.Popen[bytes], found: Outcome, began: float) -> bytes:
    """All that the process prints; `found` is told when."""
    assert process.stdout is not None
    data, last = b"", began
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready.select()
            piece = os.read(process.stdout.fileno(), 1 << 16)
            now = time.monotonic()
            found.silence, last = max(found.silence, now - last), now
            if not piece:
                break
            found.first = now - began if found.first is None else found.first
            data += piece
    return data


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Beside a process that never pauses, where that is wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def without_compilers(path: str, place: Path) -> str:
    """A PATH with a link to each program of `path` but compilers of C."""
    place.mkdir()
    for folder in path.split(os.pathsep):
        for program in sorted(Path(folder).glob("*")) if folder else ():
            link = place / program.name
            wanted = program.is_file() and not COMPILERS.match(program.name)
            if wanted and not os.path.lexists(link):
                link.symlink_to(program.absolute())
    return str(place)


def prepared(clone: Path, python: str, packages: Path) -> None:
    """Stands for `make setup`: a virtual environment that sees the packages of another."""
    subprocess.run([python, "-m", "venv", "--without-pip", ".venv"], cwd=clone, check=True)
    inside = next((clone / ".venv" / "lib").glob("python*")) / "site-packages"
    (inside / "aa_own.pth").write_text(f"{clone / 'src'}\n", "utf-8")
    (inside / "zz_other.pth").write_text(f"{packages}\n", "utf-8")
    starter = clone / ".venv" / "bin" / "niblick"
    starter.write_text(
        f"#!{clone}/.venv/bin/python\nfrom niblick.cli import main\n\nmain()\n", "utf-8"
    )
    starter.chmod(0o755)
    (clone / ".venv" / ".installed").touch()


def environment(place: Path, clone: Path, *, compiler: bool) -> dict[str, str]:
    """This one's, with an empty cache and the clone's programs first."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "NIBLICK", "VIRTUAL"))}
    path = own["PATH"] if compiler else without_compilers(own["PATH"], place / "programs")
    return {
        **own,
        "PATH": f"{clone / '.venv' / 'bin'}{os.pathsep}{path}",
        "XDG_CACHE_HOME": str(place / "cache"),
        "COLUMNS": "80",
    }


def shown(found: Outcome, scrub: dict[str, str]) -> list[str]:
    """The lines of an output, the middle left out where there are many; no path of this machine."""
    lines = [line for line in found.lines if not _ABOUT_INDEX.match(line)]
    if len(lines) > HEAD + TAIL + 1:
        left = len(lines) - HEAD - TAIL
        lines = [*lines[:HEAD], f"[... {left} lines ...]", *lines[-TAIL:]]
    told = []
    for line in lines:
        for path, name in scrub.items():
            line = line.replace(path, name)
        told.append(line if len(line) <= LONGEST else f"{line[:LONGEST]} [...]")
    return told


def section(name: str, told: str, outcomes: list[Outcome], scrub: dict[str, str]) -> str:
    """One run as Markdown: a table of all commands, then each with its output."""
    lines = [f"## {name}", "", told, "", "| command | seconds | first output | longest silence |"]
    lines.append("|---|---|---|---|")
    for found in outcomes:
        wrong = "" if found.code == found.step.code else f" **exit code {found.code}**"
        typed = found.typed if len(found.typed) < 70 else found.typed[:66] + " ..."
        first = "-" if found.first is None else f"{found.first:.1f}"
        typed = typed.replace("|", "\\|")
        lines.append(f"| `{typed}`{wrong} | {found.seconds:.1f} | {first} | {found.silence:.1f} |")
    for found in outcomes:
        lines += ["", f"**{found.step.why}** {found.seconds:.1f} s", "", "```text"]
        lines += [f"$ {found.typed}", *shown(found, scrub), "```"]
    return "\n".join(lines) + "\n"


def write(path: Path, key: str, text: str) -> None:
    """Put the section `key` in place of its last one, else at the end."""
    old = path.read_text("utf-8") if path.is_file() else _HEADER
    begin, end = f"<!-- {key} -->", f"<!-- end of {key} -->"
    block = f"{begin}\n{text}{end}\n"
    if begin in old:
        before, _, rest = old.partition(begin)
        block, old = f"{before}{block}{rest.partition(end + chr(10))[2]}", ""
    path.write_text(old + ("\n" if old else "") + block, "utf-8")


_HEADER = """# The first hour

What a stranger types in the first hour, and what comes of it: every command, its output (long ones
shortened), its seconds and its longest silence. Written by `python benchmarks/first_hour.py`, which
clones the tree, starts with an empty cache and types these commands; `--without-compiler` and
`--busy` make the other two runs. Output and errors are shown together, as a pipe gets them: a
terminal has a progress bar with the time left where these have a line every half minute.
"""


def main() -> int:
    """Run the hour and write its section; 1 where something ended as it should not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "first-hour.md")
    parser.add_argument("--without-compiler", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--python", default=shutil.which("python3") or sys.executable)
    options = parser.parse_args()
    name, told = described(options)
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder, busy(options.busy):
        outcomes, scrub = hour(Path(folder), options)
    key = name.removesuffix(_REHEARSED).lower().replace(" ", "-")  # a rehearsal gives way
    write(options.out, key, section(name, told, outcomes, scrub))
    wrong = [found for found in outcomes if found.code != found.step.code]
    for found in wrong:
        print(f"exit code {found.code}: {found.typed}", file=sys.stderr)
    return bool(wrong)


def hour(place: Path, options: argparse.Namespace) -> tuple[list[Outcome], dict[str, str]]:
    """Every command of the hour, in a clone inside `place`."""
    clone = place / "niblick"
    given = environment(place, clone, compiler=not options.without_compiler)
    scrub = {
        options.python: "python3",
        str(clone): "~/niblick",
        str(place): "~",
        str(ROOT): "NIBLICK",
        str(Path.home()): "~",
    }
    outcomes = []
    steps = [Step("Get it.", f"git clone -q {ROOT} niblick"), *STEPS]
    for number, step in enumerate(steps):
        typed = (step.short or step.command) if options.rehearse else step.command
        typed = typed.replace("{port}", str(18_000 + os.getpid() % 10_000 + number))
        skipped = options.only and not re.search(options.only, typed) and number > 1
        if skipped:
            continue
        if step.command == "make setup":
            if options.packages is not None:
                prepared(clone, options.python, options.packages)
            typed = f"make setup PYTHON={options.python}"
            typed += " && .venv/bin/python tools/compile.py" if options.packages else ""
        found = run(step, typed, place if number == 0 else clone, given)
        if step.command == "make setup":
            found.typed = step.command
        found.typed = found.typed.replace(str(ROOT), "NIBLICK")
        outcomes.append(found)
        print(f"{found.seconds:7.1f} s  silent {found.silence:5.1f} s  {found.typed}", flush=True)
    return outcomes, scrub


def described(options: argparse.Namespace) -> tuple[str, str]:
    """The section's title and the conditions of the run."""
    title = "Without a compiler" if options.without_compiler else "On a machine as it is"
    if options.busy:
        title = "On a busy machine" if not options.without_compiler else f"{title}, and busy"
    if options.rehearse:
        title += _REHEARSED
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    day = time.strftime("%Y-%m-%d")
    told = f"{day}, commit {commit.strip()}, {_processor()}, {os.cpu_count()} processors;"
    told += f" load {os.getloadavg()[2]:.1f} in the quarter of an hour before."
    if options.busy:
        told += " Another process computed without pause all the while."
    if options.without_compiler:
        told += " No compiler of C was on the PATH."
    if options.packages is not None:
        told += " The packages were there already, so set-up's time is not that of a bare machine."
    return title, told


def _processor() -> str:
    """The processor's name, where the system tells it."""
    place = Path("/proc/cpuinfo")
    lines = place.read_text("utf-8").splitlines() if place.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
