"""The pictures of docs/serving.md; `python benchmarks/serve_pictures.py [MODEL] [--out docs]`.

Starts a server of MODEL and a headless chromium, writes and scores a text, and takes the pictures:
writing (light), scoring (dark), a phone. Colours are reduced to 128 where Pillow is installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from chromium import Chromium, find_chromium

LENGTH = "document.querySelectorAll('#{} .t').length"


def shrink(path: Path) -> None:
    """Fewer colours."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)


def take(browser: Chromium, address: str, out: Path) -> list[Path]:
    """All of them."""
    made = [out / f"serving-{name}.png" for name in ("write", "score", "phone")]
    for path, size, dark in zip(
        made, ((960, 860), (960, 900), (390, 760)), (False, True, False), strict=True
    ):
        browser.window(*size, dark=dark, phone=size[0] < 500)
        browser.open(address)
        browser.until("model !== null")
        if dark:
            browser.evaluate("document.getElementById('tab-score').click()")
            browser.evaluate("document.getElementById('score-form').requestSubmit()")
            browser.until(LENGTH.format("scored") + " > 10")
            browser.evaluate("visit(document.querySelectorAll('#scored .t')[6])")
        else:
            browser.evaluate("document.getElementById('seed').value = 7")
            browser.evaluate("document.getElementById('tokens').value = 90")
            browser.evaluate("document.getElementById('write-form').requestSubmit()")
            browser.until("!running && " + LENGTH.format("written") + " > 10")
            browser.evaluate("visit(document.querySelectorAll('#written .t')[5])")
        if size[0] < 500:
            browser.evaluate("window.scrollTo(0, 330)")
        browser.picture(path)
        shrink(path)
    assert not browser.messages, browser.messages
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="pocket")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    program = find_chromium() or sys.exit("there is no chromium")
    command = [sys.executable, "-m", "niblick", "serve", options.model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = (re.search(r"http://\S+", line) for line in server.stderr)
        found = next(filter(None, lines), None)
        assert found, "the server did not start"
        try:
            with Chromium(program) as browser:
                for path in take(browser, found[0], options.out):
                    print(f"{path}: {path.stat().st_size:,} bytes")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
