"""Which build of PyTorch `make setup` takes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
LISTING = b'<a href="torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl">torch</a>'


@pytest.fixture(scope="module")
def torch_build() -> ModuleType:
    spec = spec_from_file_location("torch_build", ROOT / "tools" / "torch_build.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = LISTING if self.path == "/torch/" else b"nothing"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_index_that_lists_torch_gives_the_cpu_build(torch_build, index) -> None:
    url = f"http://127.0.0.1:{index.server_port}"
    options, told = torch_build.choose(url, driver=False, platform="linux")
    assert options == f"--index-url {url}" and "CPU build" in told
    for other in ({"driver": True, "platform": "linux"}, {"driver": False, "platform": "darwin"}):
        options, told = torch_build.choose(url, **other)
        assert options == "" and "default build" in told
    assert not torch_build.answers(f"{url}/elsewhere")  # a page that lists no torch


def test_an_index_that_is_silent_or_away_gives_the_default_build(torch_build) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        options, told = torch_build.choose(
            f"http://127.0.0.1:{port}", driver=False, platform="linux", seconds=0.2
        )
        assert options == "" and "gave no answer within 0.2 seconds" in told
    assert not torch_build.answers(f"http://127.0.0.1:{port}")


def test_flags_of_the_user_leave_the_choice_to_them() -> None:
    def commands(*settings: str) -> str:
        made = subprocess.run(
            ["make", "-n", "-B", "setup", *settings],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout

    assert "tools/torch_build.py" in commands(f"PYTHON={sys.executable}")
    own = commands("PIP_FLAGS=--index-url http://127.0.0.1:1", f"PYTHON={sys.executable}")
    assert "torch_build" not in own and "--index-url http://127.0.0.1:1 -r requirements" in own
