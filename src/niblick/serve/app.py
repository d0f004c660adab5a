"""The application: routes, the page's files, the model's card, and uvicorn around it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from niblick.engine import Engine
from niblick.errors import NiblickError
from niblick.facade import Model
from niblick.limits import MAX_THREADS
from niblick.serve.batcher import Batcher, Progress
from niblick.serve.completions import BODY_SECONDS, Completions
from niblick.serve.guard import Guard, is_loopback
from niblick.serve.metrics import Metrics
from niblick.serve.request import RequestError

STATE_BYTES = 1 << 30  # of all slots, where their number is not given
MOST_SLOTS = 64
MOST_CONNECTIONS = 1024
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve; `NiblickError` where a value is out of range or the host needs a key."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    slots: int | None = None
    threads: int | None = None
    queue: int = 256
    most_tokens: int = 4096
    most_prompt: int = 16_384
    drain_seconds: int = 30

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65_535),
            ("slots", 1, 1024),
            ("threads", 1, MAX_THREADS),
            ("queue", 0, 1 << 20),
            ("most_tokens", 1, 1 << 20),
            ("most_prompt", 1, 1 << 20),
            ("drain_seconds", 0, 86_400),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                option = name.replace("_", "-").replace("most", "max")
                raise NiblickError(f"--{option} {value}: accepted are {low} to {high:,}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise NiblickError("--api-key must be printable ASCII")
        if self.api_key is not None and not self.api_key.strip():
            raise NiblickError("--api-key must not be empty")
        if self.api_key is None and not is_loopback(self.host):
            raise NiblickError(
                f"--host {self.host} can be reached from other machines: give --api-key, or serve"
                " on 127.0.0.1"
            )


def slot_count(model: Model, wanted: int | None) -> int:
    """`wanted`, else as many as keep their state within 1 GiB, 64 at most."""
    if wanted is not None:
        return wanted
    return max(1, min(MOST_SLOTS, STATE_BYTES // max(1, model.plan.decode_state_bytes())))


def describe(model: Model, engine: Engine) -> dict[str, Any]:
    """What the page shows of a model: its card's figures where the run has one."""
    found: dict[str, Any] = {
        "name": model.recipe.name,
        "description": model.recipe.description,
        "parameters": model.plan.parameter_count,
        "layers": len(model.plan.layers),
        "depth": model.plan.depth,
        "context": model.recipe.model.context,
        "tokenizer": model.tokenizer.name,
        "bytes": model.path.stat().st_size if model.path.is_file() else None,
        "sha256": model.sha256,
        "engine": engine.name,
        "slots": engine.slots,
    }
    with suppress(ValueError, TypeError, KeyError):
        card = model.card or {}
        found |= {"bpb": float(card["packed_bpb"]), "train_seconds": card["train_seconds"]}
    return found


class Service:
    """One model being served: its engine's thread, counters and application."""

    def __init__(self, model: Model, options: ServeOptions) -> None:
        tokenizer = model.tokenizer
        if tokenizer.vocab_size > model.recipe.model.vocab_size:
            raise NiblickError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model only"
                f" {model.recipe.model.vocab_size}"
            )
        self.options, self.name = options, options.name or model.recipe.name
        slots = slot_count(model, options.slots)
        self.engine = model.open_engine(slots=slots, threads=options.threads)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.batcher = Batcher(self.engine, self._deliver, queue=options.queue)
        self.metrics = Metrics(self.batcher)
        self.completions = Completions(
            self.name,
            tokenizer,
            self.batcher,
            self.metrics,
            fingerprint=f"nib_{model.sha256[:12]}",
            most_tokens=options.most_tokens,
            most_prompt=options.most_prompt,
        )
        self._card = describe(model, self.engine) | {"id": self.name}
        self._created = int(time.time())

    def _deliver(self, found: list[Progress]) -> None:
        """On the engine's thread: hand a round over to the event loop, all at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(_take_all, found)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.batcher.start()
        yield
        await asyncio.to_thread(self.batcher.stop)

    def application(self) -> ASGIApp:
        """The ASGI application."""
        handlers: dict[Any, Any] = {HTTPException: _refused, RequestError: _refused}
        routes = [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
            Route("/card", self._show_card),
            *(Route(path, _file(name)) for path, name in _FILES.items()),
        ]
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)
        options = self.options
        return Guard(app, host=options.host, names=options.allowed_hosts, key=options.api_key)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._listed()]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.name:
            raise RequestError(
                f"the model {name!r} does not exist; this server has {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._listed())

    def _listed(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._created, "owned_by": "niblick"}

    async def _health(self, request: Request) -> Response:
        failed, draining = self.batcher.failure, self.completions.draining
        state = "failed" if failed else "draining" if draining else "ok"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def _show_card(self, request: Request) -> Response:
        return JSONResponse(self._card)


_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}


def _file(name: str) -> Callable[[Request], Any]:
    data = (resources.files("niblick.serve") / "page" / name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]

    async def show(request: Request) -> Response:
        return Response(data, media_type=kind)

    return show


def _take_all(found: list[Progress]) -> None:
    for progress in found:
        progress.job.take(progress)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        told = {404: "there is nothing at this address", 405: "the method is not allowed here"}
        message = told.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        error = RequestError(message, status=error.status_code, headers=headers)
    assert isinstance(error, RequestError)
    return JSONResponse(error.document(), error.status, error.headers)


class _Server(uvicorn.Server):
    """uvicorn, whose first signal drains and whose next one ends at once."""

    def __init__(self, config: uvicorn.Config, completions: Completions) -> None:
        super().__init__(config)
        self._completions = completions

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        self._completions.draining = True
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)


class _Patient(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """A connection that is closed where no whole head of a request comes in time."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        self._look()

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None
        elif self._limit is None:
            self._limit = self.loop.call_later(BODY_SECONDS, self._close)

    def _close(self) -> None:
        self._limit = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; `NiblickError` where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # below 0 where a name is not found
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", error)
        raise NiblickError(f"cannot listen on {host}:{port}: {reason}") from None


def configured(service: Service) -> uvicorn.Config:
    """How uvicorn is to serve the application."""
    return uvicorn.Config(
        service.application(),
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws="none",
        http=_Patient,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=service.options.drain_seconds,
        h11_max_incomplete_event_size=1 << 16,
    )


def run(service: Service, listener: socket.socket) -> None:
    """Serve until a signal comes; then drain, and raise it again."""
    server = _Server(configured(service), service.completions)
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # the engine's thread waits less for its turn
    try:
        server.run(sockets=[listener])
    finally:
        sys.setswitchinterval(before)
