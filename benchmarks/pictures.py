"""The pictures of the documentation, taken in a headless chromium; `python benchmarks/pictures.py
[serve] [html] [dashboard] [tracker] [--out docs]`, all of them unless some are named.

`serve` is the page of `niblick serve` (writing, scoring in dark, on a phone) and `html` that of
`niblick export --to html` (light beside dark), both with the shipped model. `dashboard` is `niblick
dashboard`, and `tracker` the page of tensorboard, both of the runs in `--runs`, which are trained
there first (three small ones of 80 steps) if the folder is not there. A page that logs an error,
or asks another address for something, is no picture.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

import niblick
from niblick.browser.page import export_page
from niblick.dashboard import Dashboard

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from chromium import Chromium, find_chromium

KINDS = ("serve", "html", "dashboard", "tracker")
NIBLICK = (sys.executable, "-m", "niblick")
SMALL = (
    'data.tokenizer="bytes"',
    "model.vocab_size=260",
    "model.bos_id=1",
    "model.dim=64",
    "training.batch_tokens=1024",
    "training.sequence_length=256",
    'artifact.codec="int-zlib"',
)
RUNS = {"narrow": (), "fast": ("training.muon.lr=0.08",), "wide": ("model.dim=96",)}
COLOURS = 128
BY_STEPS = """((choice) => {
    choice.value = "step";
    for (const kind of ["input", "change"]) choice.dispatchEvent(new Event(kind, {bubbles: true}));
})(document.getElementById("against"))"""


def shrink(path: Path) -> None:
    """Fewer colours."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


@contextmanager
def started(command: tuple[str, ...]) -> Iterator[str]:
    """The address that a server says on standard error; it is ended after the block."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = (re.search(r"http://\S+", line) for line in server.stderr)
        found = next(filter(None, lines), None)
        assert found, "the server did not start"
        threading.Thread(target=server.stderr.read, daemon=True).start()  # the pipe never fills
        try:
            yield found[0]
        finally:
            server.terminate()


def take_serve(browser: Chromium, out: Path) -> None:
    """Writing, scoring and a phone."""
    length = "document.querySelectorAll('#{} .t').length"
    views = (("write", 960, 860), ("score", 960, 900), ("phone", 390, 760))
    with started((*NIBLICK, "serve", "pocket", "--port", "0")) as address:
        for name, width, height in views:
            browser.window(width, height, dark=name == "score", phone=name == "phone")
            browser.open(address)
            browser.until("model !== null")
            if name == "score":
                browser.evaluate("document.getElementById('tab-score').click()")
                browser.evaluate("document.getElementById('score-form').requestSubmit()")
                browser.until(length.format("scored") + " > 10")
                browser.evaluate("visit(document.querySelectorAll('#scored .t')[6])")
            else:
                browser.evaluate("document.getElementById('seed').value = 7")
                browser.evaluate("document.getElementById('tokens').value = 90")
                browser.evaluate("document.getElementById('write-form').requestSubmit()")
                browser.until("!running && " + length.format("written") + " > 10")
                browser.evaluate("visit(document.querySelectorAll('#written .t')[5])")
            if name == "phone":
                browser.evaluate("window.scrollTo(0, 330)")
            browser.picture(out / f"serving-{name}.png")
            shrink(out / f"serving-{name}.png")


def take_html(browser: Chromium, out: Path) -> None:
    """The page of the shipped model with a text, light beside dark."""
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "page.html"
        page.write_bytes(export_page(niblick.load("pocket")))
        browser.open(page.as_uri())
        browser.until("!document.querySelector('#write').disabled")
        values = {"prompt": "The river runs down from the hills", "tokens": "256", "seed": "4"}
        for _ in range(3):  # the browser compiles what is used often better
            for field, value in values.items():
                browser.type(f"#{field}", value)
            browser.evaluate("document.querySelector('#form').requestSubmit()")
            browser.until("!document.querySelector('#write').disabled")
        browser.evaluate("document.activeElement.blur()")
        browser.evaluate("tell(told.length >> 1)")
        parts = [Path(name) / f"{dark}.png" for dark in (False, True)]
        for dark, part in enumerate(parts):
            browser.window(820, 900, dark=bool(dark))
            browser.picture(part)
        images = [Image.open(part).convert("RGB") for part in parts]
    whole = Image.new("RGB", (2 * images[0].width, images[0].height))
    for index, image in enumerate(images):
        whole.paste(image, (index * image.width, 0))
    whole.save(out / "browser.png")
    shrink(out / "browser.png")


def take_dashboard(browser: Chromium, out: Path, runs: Path) -> None:
    """All runs, with their first curves."""
    dashboard = Dashboard([runs])
    threading.Thread(target=dashboard.serve, daemon=True).start()
    browser.window(1280, 1300)
    browser.open(dashboard.url)
    browser.until(f"document.querySelectorAll('path.curve').length >= {len(RUNS)}")
    browser.evaluate(BY_STEPS)
    browser.picture(out / "dashboard.png")
    dashboard.close()
    shrink(out / "dashboard.png")


def take_tracker(browser: Chromium, out: Path, runs: Path) -> None:
    """The same runs in tensorboard, loss and bits per byte."""
    if find_spec("tensorboard") is None or not list(runs.glob("*/tensorboard")):
        print("no picture of the tracker: tensorboard is missing, or wrote nothing of these runs")
        return
    options = ("--logdir", str(runs), "--port", "0", "--load_fast=false")
    with started((sys.executable, "-m", "tensorboard.main", *options)) as address:
        browser.window(1280, 1000)
        shown = "tagFilter=^(train|validation)/(loss|bpb)"
        browser.open(f"{address}?darkMode=false&forceSVG=true&{shown}#timeseries")
        browser.until("document.querySelectorAll('scalar-card svg path').length > 5", 120)
        browser.evaluate("new Promise((done) => setTimeout(done, 2000))")  # the curves move in
        browser.picture(out / "tensorboard.png")
    shrink(out / "tensorboard.png")


def train(runs: Path) -> None:
    """The runs that are shown."""
    track = ("--track", "tensorboard") if find_spec("tensorboard") else ()
    for name, overrides in RUNS.items():
        sets = [part for each in (*SMALL, *overrides) for part in ("--set", each)]
        command = (*NIBLICK, "train", "pocket", *sets, "--duration", "80 steps", *track)
        subprocess.run((*command, "--out", str(runs / name)), check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--runs", type=Path, default=Path("runs/pictures"))
    options = parser.parse_args()
    program = find_chromium() or sys.exit("there is no chromium")
    kinds = options.kinds or KINDS
    if {"dashboard", "tracker"} & set(kinds) and not options.runs.exists():
        train(options.runs)
    for kind in KINDS:
        if kind not in kinds:
            continue
        with Chromium(program, offline=kind == "html") as browser:
            if kind == "serve":
                take_serve(browser, options.out)
            elif kind == "html":
                take_html(browser, options.out)
            elif kind == "dashboard":
                take_dashboard(browser, options.out, options.runs)
            else:
                take_tracker(browser, options.out, options.runs)
            own = ("file:", "data:", "blob:", "http://127.0.0.1:", "http://localhost:", "about:")
            assert all(address.startswith(own) for address in browser.requests), browser.requests
            assert kind == "tracker" or not browser.messages, browser.messages


if __name__ == "__main__":
    main()
