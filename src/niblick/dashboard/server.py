"""The dashboard's HTTP server: three files of the page, and what they ask for as JSON.

Guarantees: it listens on loopback, answers requests that name loopback as their host only (a page
of another site cannot have a browser read it, DNS rebinding included), and its pages load and run
nothing from elsewhere.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from niblick.dashboard.runs import Json, Watch
from niblick.errors import NiblickError
from niblick.files import MALFORMED

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_COMPARED = 12  # runs at once
_RESAMPLES = 2_000


class Dashboard:
    """What is shown of the runs below `roots`, and the server that shows it on `port` (0: any)."""

    def __init__(self, roots: Sequence[Path], port: int = 0) -> None:
        for root in roots:
            if not root.is_dir():
                raise NiblickError(f"no folder of runs at {str(root)!r}")
        self._watch, self._lock = Watch(roots), threading.Lock()
        self._compared: dict[tuple[str, ...], Json] = {}
        try:
            self._server = _Server(self, port)
        except OSError as error:
            raise NiblickError(
                f"port {port} cannot be used: {error.strerror}; choose another with --port"
            ) from None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.port}/"

    def serve(self) -> None:
        """Answer requests until `close`, or an exception in this thread."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop answering; safe from another thread."""
        self._server.shutdown()

    def release(self) -> None:
        """Give the port back."""
        self._server.server_close()

    def answer(self, path: str, query: dict[str, list[str]]) -> Json | None:
        """The document at a path of the API; None where there is none."""
        with self._lock:
            if path == "/api/runs":
                self._watch.refresh()
                runs = [run.summary() for run in self._watch.runs.values()]
                return {"runs": runs, "left_out": self._watch.left_out}
            named = query.get("run", [])
            known = [self._watch.runs[name] for name in named if name in self._watch.runs]
            if not known or len(known) != len(named) or len(known) > _COMPARED:
                return None
            if path == "/api/run":
                return known[0].details()
            if path == "/api/compare":
                key = tuple(f"{run.name} {run.summary()['revision']}" for run in known)
                if key not in self._compared:
                    self._compared = {key: _comparison([run.path for run in known])}
                return self._compared[key]
            return None


def _comparison(paths: Sequence[Path]) -> Json:
    """The tables of `niblick compare`, the first run being what the others are held against."""
    from niblick.scoring.compare import compare, comparison_rows, run_rows, verdict, warning_text
    from niblick.scoring.entries import read_entries

    try:
        found = compare(read_entries(paths, split="validation", mode=None), resamples=_RESAMPLES)
    except (NiblickError, OSError, *MALFORMED) as error:
        return {"error": str(error)[:500]}
    tables = [run_rows(found)]
    if found["comparisons"]:
        tables.append(comparison_rows(found))
    return {
        "warning": warning_text(found),
        "tables": tables,
        "verdicts": [verdict(row) for row in found["comparisons"]],
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, dashboard: Dashboard, port: int) -> None:
        self.dashboard = dashboard
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    server_version, sys_version = "niblick", ""

    def do_GET(self) -> None:
        """The page, or a document of the API."""
        if not self._from_here():
            self._send(HTTPStatus.FORBIDDEN, b"not for this host\n")
            return
        url = urlsplit(self.path)
        if url.path in _PAGE:
            name, kind = _PAGE[url.path]
            data = resources.files("niblick.dashboard").joinpath("page", name).read_bytes()
            self._send(HTTPStatus.OK, data, kind)
            return
        try:
            found = self.server.dashboard.answer(url.path, parse_qs(url.query, max_num_fields=32))
        except ValueError:
            found = None
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n")
        else:
            text = json.dumps(found, allow_nan=False).encode()
            self._send(HTTPStatus.OK, text, "application/json")

    do_HEAD = do_GET  # noqa: N815

    def _from_here(self) -> bool:
        """Whether the request is for loopback, and data is not asked for by another site's page."""
        names = {f"{name}:{self.server.server_address[1]}" for name in ("127.0.0.1", "localhost")}
        asked_by = self.headers.get("Sec-Fetch-Site", "same-origin")
        own = asked_by in ("same-origin", "none") or not self.path.startswith("/api/")
        return self.headers.get("Host") in names and own

    def _send(self, status: HTTPStatus, data: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def end_headers(self) -> None:
        """Every answer carries the rules of the page."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
