"""What every request passes first: who it is addressed to, where it comes from, its key.

A page on another site can neither reach this server under a name of its own (DNS rebinding: `Host`
is checked) nor post to it (`Origin` is checked, and nothing is offered across origins).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from niblick.limits import quoted
from niblick.serve.request import RequestError

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
OPEN = ("/", "/page.css", "/page.js", "/healthz")  # without a key


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware. `host` is the bound address; `names` are further names it may be called by,
    without ports; `key` is wanted as a bearer token where it is not None.
    """

    def __init__(self, app: ASGIApp, *, host: str, names: Sequence[str], key: str | None) -> None:
        self._app = app
        self._names = {name.lower() for name in (host, *names)}
        self._any_address = host in ("0.0.0.0", "::")
        if is_loopback(host) or self._any_address:
            self._names |= {"localhost", "127.0.0.1", "::1"}
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check(scope)
        except RequestError as error:
            await respond(sealed, error)
            return
        await self._app(scope, receive, sealed)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host = _one(headers, b"host")
        if not self._is_mine(_without_port(host)):
            raise RequestError(
                f"Host {quoted(host)} is not this server; --allow-host NAME adds a name", status=421
            )
        origin = _one(headers, b"origin") if b"origin" in headers else None
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RequestError(f"nothing is offered to other origins: {quoted(origin)}", status=403)
        if self._key is not None and scope["path"] not in OPEN:
            given = _one(headers, b"authorization") if b"authorization" in headers else ""
            scheme, _, key = given.partition(" ")
            right = hmac.compare_digest(hashlib.sha256(key.strip().encode()).digest(), self._key)
            if not right or scheme.lower() != "bearer":
                raise RequestError(
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )

    def _is_mine(self, name: str) -> bool:
        if name in self._names:
            return True
        if not self._any_address:
            return False
        try:  # an address cannot be another site's name
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _one(headers: dict[bytes, list[bytes]], name: bytes) -> str:
    values = headers.get(name, [])
    if len(values) != 1:
        raise RequestError(f"a request has one {name.decode()} header, not {len(values)}")
    return values[0].decode("latin-1")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    return name.strip("[]").lower()


async def respond(send: Send, error: RequestError) -> None:
    """Send an error object."""
    await send_json(send, error.status, error.document(), error.headers)


async def send_json(
    send: Send, status: int, document: Any, headers: dict[str, str] | None = None
) -> None:
    """Send one JSON document."""
    body = json.dumps(document, allow_nan=False).encode()
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
