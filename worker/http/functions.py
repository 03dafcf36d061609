"""Invocations: HTTP requests to the gateway's ``/function/`` path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import trio

from ..config import Settings
from ..model import Attempted, Invocation, NoResponse, Responded, TimedOut
from .client_pools import LIMITS, ClientPools, open_client_pools
from .http11 import ResponseParser, write_request
from .transport import PlainTransport, open_transport

_MAX_JOINED = 65_536
"""Bytes of a body that is copied behind its header, to be sent with it at once; a larger one is sent by itself."""
_WITH_LENGTH = ("POST", "PUT", "PATCH")
"""Methods of requests that have a Content-Length even if the body is empty (RFC 9110, section 8.6)."""


class HttpFunctions(ABC):
    """See :class:`worker.ports.Functions`.

    The gateway is near, so no proxy is used, whatever the environment names. Redirects, cookies and authentication have
    no place between a queue and a function, so requests and responses pass unchanged.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = httpx.URL(settings.gateway_url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._host = (b"Host", self._url.netloc)
        self._timeout, self._max_body = settings.upstream_timeout, settings.max_response_bytes

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        try:
            return await self._exchange(invocation, self._prefix + invocation.target, [self._host, *invocation.headers])
        except httpx.ReadTimeout:
            return TimedOut(self._timeout)
        except httpx.TransportError as error:
            return NoResponse(str(error) or type(error).__name__)

    @abstractmethod
    async def _exchange(self, invocation: Invocation, target: bytes, headers: list[tuple[bytes, bytes]]) -> Responded:
        """Send *invocation* with this request target and header.

        Raises:
            httpx.ReadTimeout: the exchange took longer than ``upstream_timeout``.
            httpx.TransportError: no whole response arrived.
        """


@asynccontextmanager
async def open_functions(settings: Settings) -> AsyncIterator[HttpFunctions]:
    """Open :class:`HttpFunctions`, and close their connections at the end."""
    url = httpx.URL(settings.gateway_url)
    if url.scheme == "http":
        async with open_transport(
            url.raw_host.decode("ascii"),
            url.port or 80,
            max_idle=settings.max_inflight,
            exchange_timeout=settings.upstream_timeout,
        ) as transport:
            yield PlainFunctions(settings, transport)
    else:
        make = partial(httpx.AsyncHTTPTransport, verify=httpx.create_ssl_context(), limits=LIMITS)
        async with open_client_pools(make, max_per_origin=settings.max_inflight) as pools:
            yield TlsFunctions(settings, pools)


class PlainFunctions(HttpFunctions):
    """Functions behind an http URL, through :class:`PlainTransport`."""

    def __init__(self, settings: Settings, transport: PlainTransport) -> None:
        super().__init__(settings)
        self._transport = transport

    async def _exchange(self, invocation: Invocation, target: bytes, headers: list[tuple[bytes, bytes]]) -> Responded:
        method, body = invocation.method.upper(), invocation.body
        if body or method in _WITH_LENGTH:
            headers.append((b"Content-Length", b"%d" % len(body)))
        joined, more = (body, b"") if len(body) <= _MAX_JOINED else (b"", body)
        request = write_request(method, target, headers, joined)
        response = ResponseParser(method, self._max_body, keep_body=invocation.callback is not None)
        await self._transport.exchange(request, response, more=more)
        return Responded(
            response.status, tuple(response.headers), bytes(response.body), response.size, response.truncated
        )


class TlsFunctions(HttpFunctions):
    """Functions behind an https URL, through httpx."""

    def __init__(self, settings: Settings, pools: ClientPools[httpx.AsyncHTTPTransport]) -> None:
        super().__init__(settings)
        self._pools = pools

    async def _exchange(self, invocation: Invocation, target: bytes, headers: list[tuple[bytes, bytes]]) -> Responded:
        request = httpx.Request(
            invocation.method, self._url, headers=headers, content=invocation.body, extensions={"target": target}
        )
        with trio.move_on_after(self._timeout):
            async with self._pools.client("") as client:
                response = await client.handle_async_request(request)
                try:
                    body, size, truncated = await self._read(response, keep=invocation.callback is not None)
                finally:
                    await response.aclose()
            return Responded(response.status_code, tuple(response.headers.raw), body, size, truncated)
        raise httpx.ReadTimeout("")

    async def _read(self, response: httpx.Response, *, keep: bool) -> tuple[bytes, int, bool]:
        """Return the body, how many of its bytes were read, and whether it is truncated."""
        body, size = bytearray(), 0
        async for part in response.aiter_raw():
            room = self._max_body - size
            size += min(len(part), room)
            if keep:
                body += part[:room]
            if len(part) > room:
                return bytes(body), size, True
        return bytes(body), size, False
