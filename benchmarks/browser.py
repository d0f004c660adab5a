"""Speed in a browser beside the native engine; `python benchmarks/browser.py [MODEL ...]`

For each model (the shipped one unless given): the page's size; the page in headless Chromium, from
disk, without a network: milliseconds from the start of unpacking to ready, milliseconds from the
click to the first token of a prompt of 8 words, tokens per second of 256 greedy tokens as the page
shows them (choice, bits, alternatives and drawing of text included; waiting for the screen is not),
and of the engine alone, called from JavaScript; then of the native engine on one thread, and the
ratio. Each speed is the best of `--repeats`, page and native in turn. `--tokenizer` is for models
that bring none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import niblick
from niblick.browser.page import export_page
from niblick.engine import GREEDY
from niblick.engine.continuation import continue_tokens

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium import Chromium, find_chromium

PROMPT, TOKENS = "The river runs down from the hills", 256
ALONE = f"""(() => {{
    model.reset();
    model.read([model.tokenizer.bos]);
    const began = performance.now();
    for (let i = 0; i < {TOKENS}; i++)
        model.read([model.choose({{temperature: 0, topK: 0, topP: 1, seed: 0}}, i)]);
    return {TOKENS} / (performance.now() - began) * 1000;
}})()"""


def field(browser: Chromium, name: str) -> str:
    """What an element of the page says."""
    return str(browser.evaluate(f"document.querySelector('#{name}').textContent"))


def write(browser: Chromium, temperature: str, seed: str = "0") -> None:
    """Let the page write."""
    browser.type("#prompt", PROMPT)
    browser.type("#temperature", temperature)
    browser.type("#tokens", str(TOKENS))
    browser.type("#seed", seed)
    browser.evaluate("document.querySelector('#form').requestSubmit()")
    browser.until("!document.querySelector('#write').disabled")


def number(text: str) -> float:
    """The figure in a text."""
    return float("".join(c for c in text if c.isdigit() or c == ".") or 0)


def native_speed(model: niblick.Model) -> float:
    """Greedy tokens per second on one thread."""
    engine = model.open_engine(threads=1, kind="native")
    began = time.perf_counter()
    list(continue_tokens(engine, [model.recipe.model.bos_id], GREEDY, max_tokens=TOKENS))
    return TOKENS / (time.perf_counter() - began)


def measure(model: niblick.Model, repeats: int, folder: Path) -> dict[str, object]:
    """All figures of one model."""
    page = folder / "page.html"
    page.write_bytes(export_page(model))
    shown, alone, native, first = [], [], [], []
    with Chromium(find_chromium(), offline=True) as browser:
        browser.open(page.absolute().as_uri())
        browser.until("!document.querySelector('#write').disabled")
        ready = number(field(browser, "status"))
        for _ in range(repeats):
            write(browser, "0")
            shown.append(number(field(browser, "speed")))
            first.append(number(field(browser, "first")))
            alone.append(float(browser.evaluate(ALONE)))
            native.append(native_speed(model))
    return {
        "model": model.recipe.name,
        "parameters": model.plan.parameter_count,
        "file_bytes": model.path.stat().st_size,
        "page_bytes": page.stat().st_size,
        "ready_ms": ready,
        "first_token_ms": min(first),
        "page_tokens_per_second": max(shown),
        "engine_tokens_per_second": round(max(alone)),
        "native_tokens_per_second": round(max(native)),
        "engine_to_native": round(max(alone) / max(native), 3),
    }


def main() -> None:
    """Print a line of JSON for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["pocket"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for index, model in enumerate(options.models):
            folder = Path(name) / str(index)
            folder.mkdir()
            loaded = niblick.load(model, tokenizer=options.tokenizer)
            print(json.dumps(measure(loaded, options.repeats, folder)))


if __name__ == "__main__":
    main()
