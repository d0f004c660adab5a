"""Draws docs/dashboard.png: the dashboard of a folder of runs, in a headless chromium.

    niblick train pocket --duration "30 steps" --out runs/pocket-1   # and others, with --set
    python tools/dashboard_picture.py runs docs/dashboard.png

`--width 400 --dark` shows what a phone in the dark shows.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from niblick.dashboard import Dashboard

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=6000",
)


def main() -> None:
    """Serve, take the picture, stop."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("runs", type=Path)
    options.add_argument("picture", type=Path)
    options.add_argument("--width", type=int, default=1100)
    options.add_argument("--height", type=int, default=1560)
    options.add_argument("--dark", action="store_true")
    given = options.parse_args()
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        options.error(f"no browser; looked for {', '.join(NAMES)}")
    dashboard = Dashboard([given.runs])
    threading.Thread(target=dashboard.serve, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *QUIET,
                *(["--force-dark-mode"] if given.dark else []),
                f"--user-data-dir={profile}",
                f"--window-size={given.width},{given.height}",
                f"--screenshot={given.picture.absolute()}",
                dashboard.url,
            ],
            check=True,
            capture_output=True,
        )
    dashboard.close()


if __name__ == "__main__":
    main()
