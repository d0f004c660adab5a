"""The dashboard's page in a real browser: it draws the curves and shows hostile names as text."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from niblick.dashboard import Dashboard

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed"),
]


def test_the_page_draws_the_runs_and_runs_no_markup_of_theirs(tmp_path: Path) -> None:
    name = "<img src=x onerror=document.title=1>"
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('name = "one"\n[training]\nduration = "40 steps"\n')
    rows = [
        {"step": i, "seconds": i, "tokens": 100 * i, "loss": 5 / i, "grad_norm": 1.0 / i}
        for i in range(1, 31)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "environment.json").write_text(json.dumps({"processor": "<b>fast</b>"}))
    dashboard = Dashboard([tmp_path / "runs"])
    threading.Thread(target=dashboard.serve, daemon=True).start()
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
        " --disable-background-networking --disable-component-update --disable-sync"
        " --virtual-time-budget=5000 --dump-dom"
    )
    page = subprocess.run(
        [str(BROWSER), *flags.split(), f"--user-data-dir={tmp_path / 'p'}", dashboard.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    dashboard.close()
    assert "1 run, 1 training" in page and "<title>niblick runs</title>" in page
    assert page.count('class="curve k0 d0" d="M') == 2, "loss and gradient norm"
    assert "<img" not in page and "&lt;img src=x" in page
    assert "&lt;b&gt;fast&lt;/b&gt;" in page
    assert 'aria-label="Training loss (nats per token) against training time' in page
