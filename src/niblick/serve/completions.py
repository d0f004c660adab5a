"""`/v1/completions`: one request from its body to its last event.

The event loop's thread turns tokens into text while the engine's thread computes the next ones; a
request wakes up once a round, and what is ready together goes out as one event.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from niblick.errors import NiblickError
from niblick.limits import quoted
from niblick.serve.batcher import Batcher, FullError, Job, Progress
from niblick.serve.guard import respond, send_json
from niblick.serve.metrics import Metrics
from niblick.serve.request import Order, RequestError, check, parse_body
from niblick.serve.writing import Choice
from niblick.text.tokenizer import Tokenizer

MOST_BODY = 1 << 20  # bytes
BODY_SECONDS = 30.0
LONG_BODY = 1 << 14  # bytes; longer ones are tokenized beside the event loop


class Completions:
    """The endpoint, an ASGI application."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        batcher: Batcher,
        metrics: Metrics,
        *,
        fingerprint: str,
        most_tokens: int,
        most_prompt: int,
    ) -> None:
        self.name = name
        self._tokenizer, self._batcher, self._metrics = tokenizer, batcher, metrics
        self._most = {"most_tokens": most_tokens, "most_prompt": most_prompt}
        self._fingerprint = fingerprint
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        began = time.perf_counter()
        try:
            order = await self._order(scope, receive)
            running = _Running(self, order, began)
            self._submit(running)
        except RequestError as error:
            self._metrics.responses.labels(str(error.status)).inc()
            await respond(send, error)
            return
        watch = asyncio.ensure_future(_hung_up(receive, running))
        try:
            await (running.stream(send) if order.stream else running.answer(send))
        except asyncio.CancelledError:
            if not self.draining:
                raise
            await running.cut_off(send)
        finally:
            watch.cancel()
            self._batcher.cancel([job for job in running.jobs if not job.cancelled])
            self._count(running)

    async def _order(self, scope: Scope, receive: Receive) -> Order:
        if self.draining:
            raise RequestError("the server is shutting down", status=503)
        kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RequestError("the body's Content-Type must be application/json", status=415)
        body = await _body(receive)

        def checked() -> Order:
            request = parse_body(body)
            if request.model not in (None, self.name):
                raise RequestError(
                    f"the model {quoted(request.model)} does not exist; this server has"
                    f" {self.name!r}",
                    status=404,
                    param="model",
                    code="model_not_found",
                )
            return check(request, self._tokenizer, **self._most)

        return checked() if len(body) < LONG_BODY else await asyncio.to_thread(checked)

    def _submit(self, running: _Running) -> None:
        if len(running.jobs) > self._batcher.most:
            raise RequestError(
                f"{len(running.jobs)} texts: this server holds {self._batcher.most} at once",
                param="n",
            )
        try:
            self._batcher.submit(running.jobs)
        except FullError as error:
            raise RequestError(
                str(error), status=429, headers={"retry-after": str(error.seconds)}
            ) from None
        except NiblickError as error:
            raise RequestError(str(error), status=503) from None
        self._metrics.prompt_tokens.inc(running.prompt_tokens)

    def _count(self, running: _Running) -> None:
        metrics = self._metrics
        metrics.generated_tokens.inc(running.written)
        if running.hung_up:
            metrics.hung_up.inc()
            return
        metrics.responses.labels("500" if running.failed else "200").inc()
        metrics.request.observe(time.perf_counter() - running.began)
        if running.first is not None:
            metrics.first_token.observe(running.first)

    def jobs(self, order: Order, choices: list[Choice], take: Any) -> list[Job]:
        """What the batcher runs for an order."""
        return [
            Job(
                ids=choice.text.ids,
                sampling=choice.text.sampling,
                max_tokens=order.max_tokens,
                vocab=self._tokenizer.vocab_size,
                end=None if order.across_documents else self._tokenizer.bos_id,
                likeliest=order.likeliest,
                scored=order.echo and order.likeliest is not None,
                take=take(choice),
            )
            for choice in choices
        ]

    def choices(self, order: Order) -> list[Choice]:
        """Those of an order."""
        return [Choice(order, text, at, self._tokenizer) for at, text in enumerate(order.texts)]

    def head(self) -> dict[str, Any]:
        """What each document of an answer begins with."""
        return {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self._fingerprint,
        }


class _Running:
    """One request under way."""

    def __init__(self, app: Completions, order: Order, began: float) -> None:
        self._order, self.began = order, began
        self._head = app.head()
        self._choices = app.choices(order)
        self._changed = asyncio.Event()
        self.jobs = app.jobs(order, self._choices, self._taker)
        self.failed = self.hung_up = False
        self.first: float | None = None
        self._batcher = app._batcher

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        seen = {id(text.ids): len(text.ids) for text in self._order.texts}
        return sum(seen.values())

    @property
    def written(self) -> int:
        """Tokens written so far."""
        return sum(choice.tokens for choice in self._choices)

    @property
    def _ended(self) -> bool:
        return (
            self.failed
            or self.hung_up
            or all(choice.finish is not None for choice in self._choices)
        )

    def _taker(self, choice: Choice) -> Any:
        def take(progress: Progress) -> None:
            if progress.finish == "failed":
                self.failed = True
            elif choice.take(progress):
                self._batcher.cancel([progress.job])
            if self.first is None and progress.tokens:
                self.first = time.perf_counter() - self.began
            if self._order.stream or self._ended:
                self._changed.set()

        return take

    def hang_up(self) -> None:
        """The client is gone."""
        if not self._ended:
            self.hung_up = True
            self._batcher.cancel(self.jobs)
            self._changed.set()

    async def answer(self, send: Send) -> None:
        """One document with all texts."""
        while not self._ended:
            await self._changed.wait()
            self._changed.clear()
        if self.hung_up:
            return
        if self.failed:
            await respond(send, RequestError("the engine failed", status=500))
            return
        choices = [_choice(choice) for choice in self._choices]
        document = {**self._head, "choices": choices, "usage": self._usage()}
        await send_json(send, 200, document)

    async def stream(self, send: Send) -> None:
        """Server-sent events, each with what has become ready since the one before."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        start = b"data: " + json.dumps(self._head).encode()[:-1] + b', "choices": ['
        end = b'], "usage": null}\n\n' if self._order.usage else b"]}\n\n"
        open_choices = list(self._choices)
        while not self.hung_up:
            await self._changed.wait()
            self._changed.clear()
            if self.failed:
                error = RequestError("the engine failed", status=500)
                await send(_body_part(b"data: " + json.dumps(error.document()).encode() + b"\n\n"))
                break
            ready = [choice for choice in open_choices if choice.ready()]
            data = b"".join(start + json.dumps(_choice(choice)).encode() + end for choice in ready)
            open_choices = [choice for choice in open_choices if choice.finish is None]
            if not open_choices:
                await send(_body_part(data + b"".join(self._last())))
                break
            if data:
                await send(_body_part(data))
        if not self.hung_up:
            await send({"type": "http.response.body", "body": b""})

    async def cut_off(self, send: Send) -> None:
        """End an answer for which a server that shuts down has no more time."""
        error = RequestError("the server is shutting down", status=503)
        self.failed = True
        if not self._order.stream:
            await respond(send, error)
            return
        await send(_body_part(b"data: " + json.dumps(error.document()).encode() + b"\n\n"))
        await send({"type": "http.response.body", "body": b""})

    def _last(self) -> Iterator[bytes]:
        if self._order.usage:
            document = {**self._head, "choices": [], "usage": self._usage()}
            yield b"data: " + json.dumps(document).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _usage(self) -> dict[str, int]:
        read, written = self.prompt_tokens, self.written
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _choice(choice: Choice) -> dict[str, Any]:
    text, logprobs = choice.piece()
    return {
        "text": text,
        "index": choice.index,
        "logprobs": logprobs,
        "finish_reason": choice.finish,
    }


def _body_part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _hung_up(receive: Receive, running: _Running) -> None:
    with suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        running.hang_up()


async def _body(receive: Receive) -> bytes:
    """The whole body, bounded in size and time."""
    found = bytearray()

    async def read() -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client hung up", status=400)
            found.extend(message.get("body", b""))
            if len(found) > MOST_BODY:
                raise RequestError(f"the body is over {MOST_BODY:,} bytes", status=413)
            more = message.get("more_body", False)

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except TimeoutError:
        raise RequestError("the body did not come in time", status=408) from None
    return bytes(found)
