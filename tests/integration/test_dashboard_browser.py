"""The dashboard's page in a real browser: it draws the curves, which grow while a run trains, and
shows hostile names as text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromium import Chromium, find_chromium
from niblick.dashboard import Dashboard

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_chromium() is None, reason="there is no chromium"),
]
NAME = "<img src=x onerror=document.title=1>"
CURVES = "document.querySelectorAll('path.curve')"


def measured(steps: range) -> str:
    rows = (
        {"step": i, "seconds": i, "tokens": 100 * i, "loss": 5 / i, "grad_norm": 1.0 / i}
        for i in steps
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of thirty steps with markup wherever it has a text."""
    folder = tmp_path / "runs" / NAME
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('name = "one"\n[training]\nduration = "40 steps"\n')
    (folder / "metrics.jsonl").write_text(measured(range(1, 31)))
    (folder / "environment.json").write_text(json.dumps({"processor": "<b>fast</b>"}))
    return folder


@pytest.fixture
def page(folder: Path) -> Iterator[Chromium]:
    """The page with its curves drawn; it has asked nobody else and logged no error."""
    dashboard = Dashboard([folder.parent])
    threading.Thread(target=dashboard.serve, daemon=True).start()
    with Chromium(str(find_chromium())) as browser:
        browser.window(1100, 900)
        browser.open(dashboard.url)
        browser.until(f"{CURVES}.length === 2")
        yield browser
        dashboard.close()
        assert all(address.startswith(dashboard.url) for address in browser.requests)
        assert not browser.messages, browser.messages


def test_the_page_draws_the_runs_and_runs_no_markup_of_theirs(page: Chromium) -> None:
    assert page.evaluate("document.title") == "niblick runs"
    assert page.evaluate("document.querySelector('#status').textContent") == "1 run, 1 training"
    assert page.evaluate("document.querySelectorAll('img, main b').length") == 0
    shown = page.evaluate("document.querySelector('main').textContent")
    assert NAME in shown and "<b>fast</b>" in shown
    label = "Training loss (nats per token) against training time"
    assert page.evaluate(f"document.querySelector('[aria-label^={json.dumps(label)}]') !== null")


def test_curves_grow_while_the_run_trains(page: Chromium, folder: Path) -> None:
    before = page.evaluate(f"{CURVES}[0].getAttribute('d')")
    assert page.evaluate("document.querySelector('#run-table tbody').textContent.includes('30')")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(measured(range(31, 38)))
    page.until(f"{CURVES}[0].getAttribute('d') !== {json.dumps(before)}")
    assert page.evaluate("document.querySelector('#run-table tbody').textContent.includes('37')")


def test_times_are_marked_at_whole_minutes(page: Chromium, folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(measured(range(40, 700, 20)))
    marked = "[...document.querySelectorAll('figure text')].map(t => t.textContent)"
    page.until(f"{marked}.includes('10 min')")
    assert not [text for text in page.evaluate(marked) if "." in text and "min" in text]


def test_nothing_is_wider_than_a_phone(page: Chromium) -> None:
    page.window(360, 700, phone=True)
    page.until("innerWidth === 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
