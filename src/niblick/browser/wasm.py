"""The engine compiled to WebAssembly: a file of this package, and how it is made again.

`assets/engine.json` says what `assets/engine.wasm` was compiled from, by which command; a test
fails where the sources are others. `python -m niblick.browser.wasm` (`make wasm`) compiles it with
the PyPI package ziglang, which brings a C compiler and the C library.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from niblick.errors import NiblickError
from niblick.toolchain import ENGINE

EXPORTS = ("floats", "open", "reset", "run", "logits", "rows", "stride", "nll", "choose")
COMMAND = (
    *("cc", "-target", "wasm32-wasi", "-mcpu=generic+simd128+bulk_memory+nontrapping_fptoint"),
    *("-mexec-model=reactor", "-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno"),
    *("-fno-trapping-math", "-s", "-Wl,-z,stack-size=262144"),
    *(f"-Wl,--export=nb_{name}" for name in EXPORTS),
)
_ASSETS = Path(str(resources.files("niblick.browser"))) / "assets"


def sources() -> dict[str, bytes]:
    """The C files by name, as the package holds them."""
    root = Path(str(resources.files("niblick")))
    paths = [root / "engine" / "native" / name for name in ENGINE.names]
    paths += [root / "native" / "pool.h", root / "codecs" / "native" / "stream.c"]
    paths += [root / "browser" / "native" / name for name in ("dot.h", "web.c")]
    return {path.name: path.read_bytes() for path in sorted(paths, key=lambda path: path.name)}


def sources_sha256() -> str:
    """SHA-256 of the sources and of the command's options."""
    digest = hashlib.sha256(repr(COMMAND).encode())
    for name, text in sources().items():
        digest.update(f"\0{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def compiled() -> bytes:
    """The WebAssembly module that was compiled."""
    return (_ASSETS / "engine.wasm").read_bytes()


def recorded() -> dict[str, str]:
    """What the module was compiled from, and its own SHA-256."""
    found: dict[str, str] = json.loads((_ASSETS / "engine.json").read_text())
    return found


def build() -> bytes:
    """Compile the sources; `NiblickError` with what the compiler said where that fails."""
    with tempfile.TemporaryDirectory() as name:
        for file, text in sources().items():
            (Path(name) / file).write_bytes(text)
        units = [file for file in sources() if file.endswith(".c") and file != "stream.c"]
        command = [sys.executable, "-m", "ziglang", *COMMAND, *units, "-o", "engine.wasm"]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NiblickError(f"the engine does not compile: {done.stderr.strip()[-2000:]}")
        return (Path(name) / "engine.wasm").read_bytes()


def _renew() -> None:
    module = build()
    _ASSETS.mkdir(exist_ok=True)
    (_ASSETS / "engine.wasm").write_bytes(module)
    facts = {
        "sources_sha256": sources_sha256(),
        "wasm_sha256": hashlib.sha256(module).hexdigest(),
        "command": "python -m ziglang " + " ".join(COMMAND),
    }
    (_ASSETS / "engine.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    _renew()
