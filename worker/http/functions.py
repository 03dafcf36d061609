"""Invocations: HTTP requests to the gateway's ``/function/`` path."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import httpx
import trio

from ..config import Settings
from ..model import Attempted, Headers, Invocation, NoResponse, Responded, TimedOut
from .client_pools import LIMITS, ClientPools, open_client_pools
from .http11 import ResponseParser, write_request
from .transport import PlainTransport, open_transport

_MAX_JOINED = 65_536
"""Bytes of a body that is copied behind its header, to be sent with it at once; a larger one is sent by itself."""
_WITH_LENGTH = ("POST", "PUT", "PATCH")
"""Methods whose requests have a Content-Length even if the body is empty (RFC 9110, section 8.6)."""


class Gateway(Protocol):
    """Sends a request to the gateway."""

    async def exchange(self, invocation: Invocation, target: bytes, headers: Headers) -> Responded:
        """Send *invocation* with this request target and header.

        Raises:
            httpx.ReadTimeout: the exchange took longer than ``upstream_timeout``.
            httpx.TransportError: no whole response arrived.
        """


class HttpFunctions:
    """See :class:`worker.ports.Functions`.

    The gateway is near, so no proxy is used, whatever the environment names. Redirects, cookies and authentication have
    no place between a queue and a function, so requests and responses pass unchanged.

    Args:
        gateway: the client.
        settings: the gateway's URL and the timeout.
    """

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        url = httpx.URL(settings.gateway_url)
        self._gateway = gateway
        self._prefix = url.raw_path.rstrip(b"/")
        self._host = (b"Host", url.netloc)
        self._timeout = settings.upstream_timeout

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        try:
            target = self._prefix + invocation.target
            return await self._gateway.exchange(invocation, target, (self._host, *invocation.headers))
        except httpx.ReadTimeout:
            return TimedOut(self._timeout)
        except httpx.TransportError as error:
            return NoResponse(str(error) or type(error).__name__)


@asynccontextmanager
async def open_functions(settings: Settings) -> AsyncIterator[HttpFunctions]:
    """Open :class:`HttpFunctions`, and close their connections at the end."""
    url = httpx.URL(settings.gateway_url)
    if url.scheme == "http":
        host, port = url.raw_host.decode("ascii"), url.port or 80
        async with open_transport(
            host, port, max_idle=settings.max_inflight, exchange_timeout=settings.upstream_timeout
        ) as transport:
            yield HttpFunctions(PlainGateway(transport, settings.max_response_bytes), settings)
    else:
        make = partial(httpx.AsyncHTTPTransport, verify=httpx.create_ssl_context(), limits=LIMITS)
        async with open_client_pools(make, max_per_origin=settings.max_inflight) as pools:
            yield HttpFunctions(TlsGateway(pools, settings), settings)


class PlainGateway:
    """A gateway at an http URL, through :class:`PlainTransport`."""

    def __init__(self, transport: PlainTransport, max_body: int) -> None:
        self._transport, self._max_body = transport, max_body

    async def exchange(self, invocation: Invocation, target: bytes, headers: Headers) -> Responded:
        """See :meth:`Gateway.exchange`."""
        method, body = invocation.method.upper(), invocation.body
        if body or method in _WITH_LENGTH:
            headers = (*headers, (b"Content-Length", b"%d" % len(body)))
        joined, more = (body, b"") if len(body) <= _MAX_JOINED else (b"", body)
        request = write_request(method, target, headers, joined)
        response = ResponseParser(method, self._max_body, keep_body=invocation.callback is not None)
        await self._transport.exchange(request, response, more=more)
        return Responded(
            response.status, tuple(response.headers), bytes(response.body), response.size, response.truncated
        )


class TlsGateway:
    """A gateway at an https URL, through httpx."""

    def __init__(self, pools: ClientPools[httpx.AsyncHTTPTransport], settings: Settings) -> None:
        self._pools = pools
        self._url = httpx.URL(settings.gateway_url)
        self._timeout = settings.upstream_timeout
        self._max_body = settings.max_response_bytes

    async def exchange(self, invocation: Invocation, target: bytes, headers: Headers) -> Responded:
        """See :meth:`Gateway.exchange`."""
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
