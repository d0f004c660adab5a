"""The server under load, on loopback; `python benchmarks/serve.py [MODEL ...] [--clients 64]
[--seconds 60] [--json] [--llama-server FILE --peers PYTHON]`.

MODEL is a file, a shipped model, or the name of a recipe, whose initial weights are packed first.
In turn: the engine alone on the same requests (all of a batch read, then written, without HTTP);
the server under `--clients` streaming clients, each with one request at a time, prompts of 16 to
512 tokens and outputs of 128; the engine alone again. Server, load generator and engine are
processes of their own. Every text is compared with what one engine writes of that request alone.

`kept` is the server's rate over the engine's, times the part of the processors that the load
generator left: tokens written per second / (the engine's mean rate * (1 - generator's processor
seconds / seconds / processors)). `kept_by_processor` compares processor time per token instead,
which other work on the machine disturbs less; `engine_reading` is the part of the engine's time
that prompts take.

`--llama-server` names llama.cpp's server, which then runs under the same load, with a random model
of 26.5 M parameters in Q6_K and prompts of as many tokens. `--peers` is a Python that has
llama-cpp-python and gguf, which write that model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

OUTPUT = 128
ORDERS = 96
LONGEST = 512
SAMPLING = {"temperature": 0.8, "top_p": 1.0}


def packed(name: str, folder: Path) -> str:
    """A file or shipped model as it is, or the initial weights of a recipe in a file."""
    from niblick.facade import shipped_models

    if Path(name).exists() or name in shipped_models():
        return name
    from niblick.compression.packing import pack
    from niblick.model import LanguageModel
    from niblick.recipe import load_recipe
    from niblick.text.tokenizer import load_tokenizer

    recipe = load_recipe(name, ['artifact.codec="int-zlib"', "artifact.max_bytes=100000000"])
    tensors = LanguageModel(recipe.model, seed=0).state_dict()
    out = folder / f"{name}.nib"
    tokenizer = load_tokenizer("fineweb-1024")
    pack(dict(tensors), recipe, tokenizer, out, max_bytes=100_000_000)
    return str(out)


def orders(model: Any) -> list[dict[str, Any]]:
    """Requests with prompts of random words, 16 to `LONGEST` tokens."""
    import numpy as np

    draw, tokenizer = np.random.default_rng(0), model.tokenizer
    found = []
    for seed in range(ORDERS):
        count = int(draw.integers(16, LONGEST + 1)) - 1
        text = tokenizer.decode(draw.integers(4, tokenizer.vocab_size, 2 * count).tolist())
        prompt = tokenizer.decode(tokenizer.encode(text)[:count].tolist())
        found.append({"prompt": prompt, "seed": seed, "max_tokens": OUTPUT, **SAMPLING})
    return found


def write_orders(path: str, out: Path) -> None:
    """The requests and the text that each gets alone."""
    import niblick

    model = niblick.load(path)
    told = [
        {**order, "text": model.generate(**order, across_documents=True)} for order in orders(model)
    ]
    out.write_text(json.dumps(told))


def run_engine(path: str, told: Path, slots: int, seconds: float) -> dict[str, float]:
    """Tokens written per second without a server."""
    import numpy as np

    import niblick
    from niblick.engine import Sampling, sequence

    model = niblick.load(path)
    engine = model.open_engine(slots=slots)
    given = [
        (order, model.tokenizer.encode_document(order["prompt"]))
        for order in json.loads(told.read_text())
    ]
    vocab = model.tokenizer.vocab_size
    began, used = time.perf_counter(), time.process_time()
    written, reading, at = 0, 0.0, 0
    while time.perf_counter() - began < seconds:
        rows = []
        read = time.perf_counter()
        for slot in range(slots):
            order, ids = given[at % len(given)]
            at += 1
            engine.read(slot, ids)
            sampling = Sampling(seed=order["seed"], **SAMPLING)
            rows.append(sequence(slot, sampling, max_tokens=OUTPUT, vocab=vocab))
        reading += time.perf_counter() - read
        engine.extend(np.concatenate(rows), OUTPUT)
        written += slots * OUTPUT
    took, used = time.perf_counter() - began, time.process_time() - used
    return {
        "tokens_per_second": written / took,
        "reading": reading / took,
        "processor_ms": 1e3 * used / written,
    }


class Client(asyncio.Protocol):
    """One connection; a request at a time."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] | None = None
        self.data = bytearray()
        self.times: list[float] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if b"data: " in data:
            self.times.append(time.perf_counter())
        if self.data.endswith(b"\r\n0\r\n\r\n") and self.done and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done and not self.done.done():
            self.done.set_exception(ConnectionError("the connection ended"))

    async def ask(self, request: bytes) -> float:
        """Send and await the whole answer; when it was sent."""
        self.done = asyncio.get_running_loop().create_future()
        self.data.clear()
        self.times.clear()
        began = time.perf_counter()
        self.transport.write(request)
        await self.done
        return began

    def text(self) -> str:
        """The text in the answer's events."""
        events = re.findall(rb"data: (\{.*\})\n", self.data)
        return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def request_bytes(order: dict[str, Any]) -> bytes:
    """An HTTP request of an order."""
    body = {k: v for k, v in order.items() if k != "text"}
    data = json.dumps({**body, "stream": True, "across_documents": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def load(port: int, told: Path, clients: int, seconds: float) -> dict[str, Any]:
    """What the clients saw in `seconds`."""
    given = [(request_bytes(o), o["text"]) for o in json.loads(told.read_text())]
    loop, at = asyncio.get_running_loop(), 0
    first: list[float] = []
    gaps: list[float] = []
    counts = {"requests": 0, "lost": 0, "mixed_up": 0}
    began = time.perf_counter()
    end = began + seconds
    tokens = 0.0

    async def one() -> None:
        nonlocal at, tokens
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        while time.perf_counter() < end:
            request, text = given[at % len(given)]
            at += 1
            counts["requests"] += 1
            try:
                sent = await client.ask(request)
            except ConnectionError:
                counts["lost"] += 1
                _, client = await loop.create_connection(Client, "127.0.0.1", port)
                continue
            times = client.times
            if not client.data.startswith(b"HTTP/1.1 200") or not times:
                counts["lost"] += 1
                continue
            counts["mixed_up"] += text is not None and client.text() != text
            first.append(times[0] - sent)
            gaps.extend(b - a for a, b in pairwise(times))
            # of a request that goes on past the end, the part before it
            whole = times[-1] - sent
            tokens += OUTPUT * min(1.0, max(0.0, (end - sent) / whole))
        client.transport.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = time.perf_counter() - began
    return {
        **counts,
        "tokens_per_second": tokens / seconds,
        "generator_processor": (used.ru_utime + used.ru_stime) / took,
        **{f"first_token_p{p}_ms": 1e3 * quantile(first, p) for p in (50, 99)},
        **{f"gap_p{p}_ms": 1e3 * quantile(gaps, p) for p in (50, 99)},
        "tokens_per_event": OUTPUT * len(first) / max(1, len(gaps) + len(first)),
    }


def quantile(values: list[float], percent: int) -> float:
    """A percentile by rank."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] if values else 0.0


def role(*arguments: object) -> Any:
    """What a process of its own, playing one part, reports."""
    command = [sys.executable, __file__, "--role", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout or "null")


def server_load(path: str, told: Path, clients: int, seconds: float) -> dict[str, Any]:
    """A server, and what the load on it saw."""
    command = [sys.executable, "-m", "niblick", "serve", path, "--port", "0"]
    command += ["--slots", str(clients), "--queue", str(clients)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in server.stderr)
        found = next(filter(None, lines), None)
        if not found:
            raise SystemExit("the server did not start")
        try:
            before = metrics(found[0])
            seen = role("load", found[1], told, clients, seconds)
            after = metrics(found[0])
        finally:
            server.terminate()
    spent = {name: after[name] - before[name] for name in before}
    tokens = spent["niblick_generated_tokens_total"]
    return {
        **seen,
        "server_processor_ms": 1e3 * spent["process_cpu_seconds_total"] / tokens,
        "engine_busy": spent["niblick_engine_seconds_total"] / seconds,
    }


def write_peer_orders(vocab: int, out: Path) -> None:
    """Requests of `orders`' lengths for a model whose tokens mean nothing, as numbers."""
    import numpy as np

    draw, told = np.random.default_rng(0), []
    for seed in range(ORDERS):
        ids = draw.integers(300, vocab, int(draw.integers(16, LONGEST + 1))).tolist()
        order = {"prompt": ids, "seed": seed, "max_tokens": OUTPUT, **SAMPLING}
        told.append({**order, "ignore_eos": True, "text": None})
    out.write_text(json.dumps(told))


def measure_peer(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """llama.cpp's server under the same load."""
    from niblick.runtime import available_processors

    model, told = folder / "packed.gguf", folder / "orders.json"
    peers = [options.peers, str(Path(__file__).with_name("decode_peers.py")), "write-Q6_K"]
    command = [*peers, json.dumps({"out": str(model)})]
    made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    write_peer_orders(made["vocab"], told)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [options.llama_server, "-m", str(model), "--port", str(port)]
    command += ["-np", str(options.clients), "-c", str(options.clients * (LONGEST + 2 * OUTPUT))]
    command += ["-t", str(available_processors()), "--no-webui", "--log-disable"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            await_health(port)
            before = processor_seconds(server.pid)
            seen = role("load", port, told, options.clients, options.seconds)
            used = processor_seconds(server.pid) - before
        finally:
            server.terminate()
    written = seen["tokens_per_second"] * options.seconds
    return {
        "model": "llama.cpp's server, Q6_K",
        **seen,
        "server_processor_ms": 1e3 * used / written,
    }


def await_health(port: int) -> None:
    """Until the server answers; `SystemExit` after a minute."""
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise SystemExit("llama.cpp's server did not start")


def processor_seconds(process: int) -> float:
    """What a process has used, of user and system time, as Linux tells."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metrics(address: str) -> dict[str, float]:
    """Those without labels."""
    with urllib.request.urlopen(f"{address}metrics") as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of one model."""
    from niblick.runtime import available_processors

    path, told = packed(name, folder), folder / "orders.json"
    role("orders", path, told)
    alone = [role("engine", path, told, options.clients, options.seconds / 4)]
    seen = server_load(path, told, options.clients, options.seconds)
    alone.append(role("engine", path, told, options.clients, options.seconds / 4))
    rate = fmean(each["tokens_per_second"] for each in alone)
    left = 1 - seen["generator_processor"] / available_processors()
    return {
        "model": name,
        **seen,
        "engine_tokens_per_second": [each["tokens_per_second"] for each in alone],
        "engine_reading": fmean(each["reading"] for each in alone),
        "engine_processor_ms": fmean(each["processor_ms"] for each in alone),
        "kept": seen["tokens_per_second"] / (rate * left),
        "kept_by_processor": fmean(each["processor_ms"] for each in alone)
        / seen["server_processor_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["pocket", "token-shift"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true", help="one JSON document per model")
    parser.add_argument("--llama-server", metavar="FILE")
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        part, *rest = options.role
        if part == "orders":
            write_orders(rest[0], Path(rest[1]))
        elif part == "engine":
            print(json.dumps(run_engine(rest[0], Path(rest[1]), int(rest[2]), float(rest[3]))))
        else:
            seen = load(int(rest[0]), Path(rest[1]), int(rest[2]), float(rest[3]))
            print(json.dumps(asyncio.run(seen)))
        return
    for name in [*options.models, *([None] if options.llama_server else [])]:
        with tempfile.TemporaryDirectory() as folder:
            if name is None:
                found = measure_peer(options, Path(folder))
            else:
                found = measure(name, options, Path(folder))
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        for key, value in found.items():
            print(f"{key:<26} {f'{value:.3f}' if isinstance(value, float) else value}", flush=True)


if __name__ == "__main__":
    main()
