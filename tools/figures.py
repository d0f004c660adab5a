"""Every figure of README.md and docs/ that is measured, from one list: `python tools/figures.py`.

docs/results.json holds the rows: name, what it is, unit, values, and the command, commit, date and
machine that they come from. From it are written, and by nothing else: what stands between
`<!-- figures: NAME -->` and `<!-- end -->` in README.md and docs/*.md (tools/figure_blocks.py) and
the plots in docs/ (tools/figure_plots.py). So none can contradict another. Without options
everything is written again (`make figures`), byte for byte the same from the same rows.

    python tools/figures.py --check                    # exit code 1 where something is old
    python tools/figures.py --list                     # the rows
    python tools/figures.py --renew NAME [WORD=VALUE]  # run the row's command, take what it prints
    python tools/figures.py --take NAME FILE           # take what the command printed (--json)
    python tools/figures.py --set NAME KEY=VALUE ...   # values by hand; an unknown KEY is an error

WORD is a word in capitals in the row's command that stands for something of yours: RUN, CHECKPOINT,
PYTHON. What is taken or set carries this commit, this day and this machine, unless `--commit`,
`--date`, `--machine` say otherwise; `--note` says what else one should know.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))
from figure_blocks import BLOCKS
from figure_readers import READERS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results.json"
KEYS = ("name", "what", "unit", "values", "command", "commit", "date", "machine")
BLOCK = re.compile(r"<!-- figures: ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)
Row = dict[str, Any]


def read_rows(path: Path = RESULTS) -> dict[str, Row]:
    """Name -> row; exits where a row lacks a part or stands twice."""
    rows: dict[str, Row] = {}
    for row in json.loads(path.read_text("utf-8")):
        missing = [key for key in KEYS if row.get(key) in (None, "", [], {})]
        if missing or row["name"] in rows:
            problem = f"lacks {', '.join(missing)}" if missing else "stands twice"
            sys.exit(f"{path.name}: row {row.get('name')!r} {problem}")
        rows[row["name"]] = row
    return rows


def write_rows(rows: list[Row], path: Path = RESULTS) -> None:
    """The list as a file: a line for each part of a row, and for each row of a table."""
    path.write_text("[\n" + ",\n".join(map(_row_text, rows)) + "\n]\n", "utf-8")


def _row_text(row: Row) -> str:
    parts = [f"  {json.dumps(key)}: {_value_text(row[key])}" for key in row]
    return " {\n" + ",\n".join(parts) + "\n }"


def _value_text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join("   " + json.dumps(each) for each in value) + "\n  ]"
    if isinstance(value, dict) and any(isinstance(each, list | dict) for each in value.values()):
        inner = (f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n  }"
    return json.dumps(value)


def wanted(rows: dict[str, Row], root: Path = ROOT) -> dict[Path, str]:
    """Every page that has blocks and every plot, as it must be."""
    from figure_plots import PLOTS, draw

    found: dict[Path, str] = {}
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = path.read_text("utf-8")
        if "<!-- figures:" in text:
            found[path] = page(path, text, rows, "docs/" if path.parent == root else "")
    for name in PLOTS:
        for scheme in ("light", "dark"):
            found[root / "docs" / f"{name}-{scheme}.svg"] = draw(name, rows, scheme)
    return found


def page(path: Path, text: str, rows: dict[str, Row], docs: str) -> str:
    """A page with its blocks written anew; exits where a block is unknown or not closed."""
    names = [name for name, _ in BLOCK.findall(text)]
    if len(names) != text.count("<!-- figures:"):
        sys.exit(f"{path.name}: a block of figures is not closed by <!-- end -->")
    if unknown := sorted(set(names) - set(BLOCKS)):
        sys.exit(f"{path.name}: no block {unknown[0]!r}; there are: {', '.join(BLOCKS)}")
    return BLOCK.sub(
        lambda match: (
            f"<!-- figures: {match[1]} -->\n{BLOCKS[match[1]](rows, docs).strip()}\n<!-- end -->"
        ),
        text,
    )


def differing(rows: dict[str, Row], root: Path = ROOT) -> dict[Path, str]:
    """What of `wanted` is not what lies on disk."""
    return {
        path: text
        for path, text in wanted(rows, root).items()
        if not path.exists() or path.read_text("utf-8") != text
    }


def make(rows: dict[str, Row], root: Path = ROOT) -> list[Path]:
    """Write the rows, the pages and the plots; the files that changed."""
    write_rows(list(rows.values()), root / "docs" / "results.json")
    changed = differing(rows, root)
    for path, text in changed.items():
        path.write_text(text, "utf-8")
    return list(changed)


def card_values(card: dict[str, Any]) -> dict[str, Any]:
    """What the row `shipped` holds of a model's card."""
    return rounded(
        {
            "bpb": card["packed_bpb"],
            "float_bpb": card["float_bpb"],
            "bytes": card["artifact_bytes"],
            "max_bytes": card["max_bytes"],
            "parameters": card["parameters"],
            "tokens": card["train_tokens"],
            "passes": card["passes"],
            "compressors": card["baselines"],
        }
    )


def take(rows: dict[str, Row], name: str, values: Any, **told: str | None) -> None:
    """New values of a row, with where they come from. `told` replaces what is taken to be so: this
    commit, this day, this machine, the row's command and note (an empty one removes it).
    """
    row = rows[name]
    row["values"] = rounded(values)
    row |= {"commit": this_commit(), "date": date.today().isoformat(), "machine": this_machine()}
    row |= {key: value for key, value in told.items() if value is not None}
    if not row.get("note"):
        row.pop("note", None)


def rounded(value: Any) -> Any:
    """Numbers to seven significant digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def this_commit() -> str:
    """The commit at hand, marked where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not recorded"


def this_machine() -> str:
    """Processor, cores, and what else it is doing."""
    from niblick.runtime import available_processors

    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.*)", lines)
    named = model[1].replace("(R)", "").replace(" Processor", "") if model else platform.processor()
    text = f"{named or platform.machine()}, {available_processors()} cores"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"{text}, beside other work (load {load:.1f})" if load > 1 else text


def renew(row: Row, words: dict[str, str]) -> Any:
    """Run a row's command, with the words that stand for something replaced; what it prints."""
    command = row["command"]
    if not command.endswith("--json"):
        sys.exit(f"row {row['name']!r} is made by `{command}`; then --set it")
    command = re.sub(r"\b[A-Z]{3,}\b", lambda match: words.get(match[0], match[0]), command)
    if missing := re.findall(r"\b[A-Z]{3,}\b(?==?(?:\s|$))", command):
        sys.exit(f"say what it is: {' '.join(f'{word}=...' for word in missing)}")
    parts = shlex.split(command)
    parts[0] = sys.executable if parts[0] == "python" else parts[0]
    done = subprocess.run(parts, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"exit code {done.returncode}: {shlex.join(parts)}")
    return json.loads(done.stdout)


def set_values(row: Row, pairs: list[str]) -> Any:
    """A row's values with some replaced; KEY may be a path (`TABLE.3.ms`: a row, then a column)."""
    values = json.loads(json.dumps(row["values"]))
    for pair in pairs:
        path, _, text = pair.partition("=")
        inner, parts = values, path.split(".")
        for part in parts[:-1]:
            inner = inner[_key(inner, part, path)]
        inner[_key(inner, parts[-1], path)] = _literal(text)
    return values


def _key(inner: Any, part: str, path: str) -> Any:
    known = range(len(inner)) if isinstance(inner, list) else inner
    key = int(part) if isinstance(inner, list) and part.isdecimal() else part
    if key not in known:
        sys.exit(f"no {path!r}; there are: {', '.join(map(str, known))}")
    return key


def _literal(text: str) -> Any:
    try:
        return json.loads(text.replace("_", ""))
    except json.JSONDecodeError:
        return text


def listing(rows: dict[str, Row]) -> str:
    """One line a row."""
    width = max(map(len, rows))
    return "\n".join(
        f"{name:{width}}  {row['date']}  {row['commit']:<8} {row['what']}\n"
        f"{'':{width}}  {row['command']}"
        for name, row in rows.items()
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; exit code 1 if old")
    what.add_argument("--list", action="store_true")
    what.add_argument("--renew", nargs="+", metavar="NAME [WORD=VALUE]")
    what.add_argument("--take", nargs=2, metavar=("NAME", "FILE"))
    what.add_argument("--set", nargs="+", metavar="NAME KEY=VALUE")
    for name in ("commit", "date", "machine", "note", "command"):
        parser.add_argument(f"--{name}")
    return parser.parse_args()


def new_values(options: argparse.Namespace, rows: dict[str, Row]) -> tuple[str, Any] | None:
    """The row that is asked for, and its new values."""
    given = options.renew or options.take or options.set
    if not given:
        return None
    name, *rest = given
    if name not in rows:
        sys.exit(f"no row {name!r}; there are: {', '.join(rows)}")
    if options.set:
        return name, set_values(rows[name], rest)
    if options.take:
        document = json.loads(sys.stdin.read() if rest[0] == "-" else Path(rest[0]).read_text())
    else:
        document = renew(rows[name], dict(word.split("=", 1) for word in rest))
    return name, READERS.get(name, lambda each: each)(document)


def main() -> int:
    """Do what the command line says."""
    options = arguments()
    rows = read_rows()
    if options.list:
        print(listing(rows))
        return 0
    if options.check:
        old = differing(rows)
        for path in old:
            print(f"{path.relative_to(ROOT)} is not what docs/results.json says: make figures")
        return int(bool(old))
    if (found := new_values(options, rows)) is not None:
        told = ("commit", "date", "machine", "note", "command")
        take(rows, *found, **{key: getattr(options, key) for key in told})
    for path in make(rows):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
