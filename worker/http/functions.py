"""Where invocations go: the gateway's ``/function/`` path."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from ..config import Settings
from ..model import Attempted, Invocation, NoResponse, Responded, TimedOut
from .http11 import Answer, write_request
from .transport import PlainTransport

_JOINED = 65_536
"""Bytes of a body up to which it is copied behind its header, and sent with it at once."""
_CLOSING = 1.0
"""Seconds that the closing of what is idle may take."""
_TELLS_LENGTH = ("POST", "PUT", "PATCH")
"""Methods whose requests tell the length of a body that is empty, too (RFC 9110, section 8.6)."""


class HttpFunctions:
    """See :class:`worker.ports.Functions`.

    Plain HTTP goes through our own transport's lower face. Anything else goes straight to httpx's transport: what its
    client adds (cookies, redirects, authentication) has no place between a queue and a function.

    Args:
        settings: where, and the bounds.
        nursery: runs what holds the exchanges to their time.
    """

    def __init__(self, settings: Settings, nursery: trio.Nursery) -> None:
        self._url = httpx.URL(settings.gateway_url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._host = (b"Host", self._url.netloc)
        self._timeout = settings.upstream_timeout
        self._most_body = settings.max_response_bytes
        self._origin = self._url.raw_host.decode("ascii"), self._url.port or 80
        self._plain = PlainTransport(
            most_body=settings.max_response_bytes, most_idle=settings.max_inflight, timeout=settings.upstream_timeout
        )
        nursery.start_soon(self._plain.keep)
        self._tls: httpx.AsyncBaseTransport | None = None
        if self._url.scheme != "http":
            self._tls = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=settings.max_inflight))

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        try:
            if self._tls:
                return await self._invoke_by_httpx(self._tls, invocation)
            return await self._invoke(invocation)
        except httpx.ReadTimeout:
            return TimedOut(self._timeout)
        except httpx.TransportError as error:
            return NoResponse(str(error) or type(error).__name__)

    async def aclose(self) -> None:
        """Close what is idle."""
        await self._plain.aclose()
        if self._tls:
            await self._tls.aclose()

    async def _invoke(self, invocation: Invocation) -> Responded:
        method, body = invocation.method.upper(), invocation.body
        headers = [self._host, *invocation.headers]
        if body or method in _TELLS_LENGTH:
            headers.append((b"Content-Length", b"%d" % len(body)))
        joined, more = (body, b"") if len(body) <= _JOINED else (b"", body)
        request = write_request(method, self._prefix + invocation.target, headers, joined)
        answer = Answer(method, self._most_body, keep=invocation.callback is not None)
        await self._plain.exchange(self._origin, request, answer, more=more)
        return Responded(answer.status, tuple(answer.headers), bytes(answer.body), answer.size, answer.truncated)

    async def _invoke_by_httpx(self, tls: httpx.AsyncBaseTransport, invocation: Invocation) -> Responded:
        request = httpx.Request(
            invocation.method,
            self._url,
            headers=[self._host, *invocation.headers],
            content=invocation.body,
            extensions={"target": self._prefix + invocation.target},
        )
        with trio.move_on_after(self._timeout):
            return await self._exchange(tls, request)
        raise httpx.ReadTimeout("")

    async def _exchange(self, tls: httpx.AsyncBaseTransport, request: httpx.Request) -> Responded:
        response = await tls.handle_async_request(request)
        try:
            body, size, truncated = await self._read(response)
        finally:
            await response.aclose()
        return Responded(response.status_code, tuple(response.headers.raw), body, size, truncated)

    async def _read(self, response: httpx.Response) -> tuple[bytes, int, bool]:
        """Body, the size of what was read of it, and whether that was not all."""
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._most_body:
                return bytes(body[: self._most_body]), self._most_body, True
        return bytes(body), len(body), False


@asynccontextmanager
async def open_functions(settings: Settings) -> AsyncIterator[HttpFunctions]:
    """Functions to invoke."""
    async with trio.open_nursery() as nursery:
        functions = HttpFunctions(settings, nursery)
        try:
            yield functions
        finally:
            with trio.move_on_after(_CLOSING, shield=True):
                await functions.aclose()
            nursery.cancel_scope.cancel()
