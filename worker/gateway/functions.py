"""Proxy for ``/function/<name>…``: passes bytes on in both directions, follows no redirect and stores nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from math import inf

import anyio
import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from ..policy.decode import HOP_BY_HOP, connection_options
from ..policy.names import parse_function
from ..policy.parse import without_password
from ..settings import Settings
from .bounded_log import BoundedLog
from .message import check_path, split_target

MAX_CONNECTIONS = 500
"""Concurrent requests. Further ones wait for a while, then get 503."""
_POOL_TIMEOUT = 5.0
"""Seconds that they wait, at most half of upstream_timeout: waiting for longer only makes them more."""
_KEEP_ALIVE = 30.0
"""Seconds to keep an idle connection: fewer than servers commonly do, which seldom close one that is in use then."""
_CONNECT_TIMEOUT = 5.0
"""Seconds to connect: a machine in reach answers in milliseconds, and a lost packet can be repeated twice."""
_MAPPED = "::ffff:"
"""Beginning of the address of an IPv4 caller, where the listener is for both families."""
_REQUEST_DROPPED = HOP_BY_HOP | {b"host", b"via", b"x-forwarded-for"}
_RESPONSE_DROPPED = HOP_BY_HOP | {b"date"}
"""The gateway's server writes a date of its own."""

Fields = list[tuple[bytes, bytes]]


class FunctionProxy:
    """The application behind ``/function/``.

    It calls httpx's transport directly, because httpx's client would store every caller's cookies.
    """

    called = "the functions"
    """The server behind this proxy, as callers read it."""

    def __init__(
        self, settings: Settings, log: FilteringBoundLogger, *, at_once: int = MAX_CONNECTIONS, endless: bool = False
    ) -> None:
        """Create a proxy for *at_once* requests. With *endless*, a response that has begun may take forever."""
        self._settings, self._log = settings, BoundedLog(log)
        self._url = httpx.URL(settings.gateway_url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._name = f"1.1 queue-worker-{secrets.token_hex(4)}".encode()
        """Entry in Via (RFC 9110, section 7.6.3), by which this gateway detects a loop."""
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=100, keepalive_expiry=_KEEP_ALIVE)
        self._transport = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
        timeout = settings.upstream_timeout
        self._rest = inf if endless else timeout
        """Seconds for a whole response."""
        self._timeout = httpx.Timeout(
            None if endless else timeout, connect=min(timeout, _CONNECT_TIMEOUT), pool=min(timeout / 2, _POOL_TIMEOUT)
        ).as_dict()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, until its response is sent or the caller closes its connection."""
        function, path = split_target(scope["raw_path"].decode("ascii").removeprefix("/function/"))
        try:
            parse_function(function, self._settings.default_function_name)
            check_path(path)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        await self.pass_on(scope, receive, send)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on whose path was checked."""
        if any(self._name in value for value in _values(scope["headers"], b"via")):
            url = without_password(str(self._url))
            text = f"gateway_url = {url} leads back to this gateway: set it to where the functions are"
            raise HTTPException(508, text)
        body = _Body(scope, receive)
        # anyio's cancellation, not the task's own: httpcore shields the closing of its connections from that one only.
        with anyio.CancelScope() as until_disconnected:
            disconnect = asyncio.ensure_future(body.wait_disconnected())
            disconnect.add_done_callback(lambda _: until_disconnected.cancel())
            try:
                await self._forward(scope, body, send)
            finally:
                disconnect.cancel()

    async def _forward(self, scope: Scope, body: _Body, send: Send) -> None:
        """Pass the request on and the response back, to its end within ``upstream_timeout``."""
        seconds = self._settings.upstream_timeout
        end = anyio.current_time() + self._rest
        try:
            with anyio.fail_after(seconds):
                response = await self._transport.handle_async_request(self._request(scope, body))
        except httpx.PoolTimeout:
            raise HTTPException(503, f"too many requests to {self.called} at once", {"Retry-After": "1"}) from None
        except (httpx.TimeoutException, TimeoutError):
            raise self._failed(504, f"no answer within {seconds:g} s") from None
        except httpx.TransportError as error:
            raise self._failed(502, f"cannot be reached: {error or type(error).__name__}") from None
        if response.status_code < 200:
            await response.aclose()
            raise self._failed(502, f"an answer {response.status_code}, though no other protocol was requested")
        try:
            with anyio.fail_after(end - anyio.current_time()):
                await _pass_back(response, send)
        except (httpx.TransportError, TimeoutError) as error:
            # The status is sent, so the caller can only be shown an incomplete response: the server closes the
            # connection of an application that does not complete its response.
            late = isinstance(error, TimeoutError | httpx.TimeoutException)
            reason = f"not complete within {seconds:g} s" if late else str(error) or type(error).__name__
            self._log.warning("A function's answer broke off", error=reason)
        finally:
            await response.aclose()

    def _failed(self, status: int, text: str) -> HTTPException:
        self._log.warning("No answer from gateway_url", text, gateway_url=without_password(str(self._url)), error=text)
        return HTTPException(status, f"{self.called} at {self._url.host}: {text}")

    def _request(self, scope: Scope, body: _Body) -> httpx.Request:
        headers = _end_to_end(scope["headers"], _REQUEST_DROPPED)
        host, client = _values(scope["headers"], b"host"), scope.get("client")
        chain = [
            *_values(scope["headers"], b"x-forwarded-for"),
            *([client[0].removeprefix(_MAPPED).encode()] if client else ()),
        ]
        headers += [(b"Via", b", ".join([*_values(scope["headers"], b"via"), self._name]))]
        headers += [(b"X-Forwarded-For", b", ".join(chain))] if chain else []
        if host and not _values(headers, b"x-forwarded-host"):
            headers.append((b"X-Forwarded-Host", host[0]))
        query = scope["query_string"]
        target = self._prefix + scope["raw_path"] + (b"?" + query if query else b"")
        return httpx.Request(
            scope["method"],
            self._url,
            headers=headers,
            content=body.chunks() if body.present else None,
            extensions={"target": target, "timeout": self._timeout},
        )


async def _pass_back(response: httpx.Response, send: Send) -> None:
    headers = _end_to_end(response.headers.raw, _RESPONSE_DROPPED)
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for chunk in response.aiter_raw():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await response.aclose()  # before the last event, which ends wait_disconnected and so cancels this task
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """A request's body, and after it the event that the caller closed its connection."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope, self._receive = scope, receive
        self._read = asyncio.Event()
        self.present = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        if not self.present:
            self._read.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in Request(self._scope, self._receive).stream():
            yield chunk
        self._read.set()

    async def wait_disconnected(self) -> None:
        """Wait until the caller closes its connection after the body, or the response is complete."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for field, value in fields if field.lower() == name]


def _end_to_end(fields: Fields, dropped: frozenset[bytes]) -> Fields:
    """Return the fields without those of a single connection, which Connection can name too."""
    named = {option for value in _values(fields, b"connection") for option in connection_options(value)}
    return [(name, value) for name, value in fields if name.lower() not in dropped and name.lower() not in named]
