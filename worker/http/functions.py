"""Where invocations go: the gateway's ``/function/`` path."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import trio

from ..config import Settings
from ..model import Attempted, Invocation, NoResponse, Responded, TimedOut
from .client_pools import CLOSING, LIMITS, ClientPools
from .http11 import ResponseParser, write_request
from .transport import PlainTransport

_JOINED = 65_536
"""Bytes of a body up to which it is copied behind its header, and sent with it at once."""
_TELLS_LENGTH = ("POST", "PUT", "PATCH")
"""Methods whose requests tell the length of a body that is empty, too (RFC 9110, section 8.6)."""


class HttpFunctions:
    """See :class:`worker.ports.SubjectDiscovery`.

    No proxy is asked, whatever the environment says: the gateway is near. Nothing is followed, remembered or added, as
    httpx's client would: cookies, redirects and authentication have no place between a queue and a function.

    Args:
        settings: where, and the bounds.
        nursery: runs what holds exchanges to their time, and closes idle connections.
    """

    def __init__(self, settings: Settings, nursery: trio.Nursery) -> None:
        plain = httpx.URL(settings.gateway_url).scheme == "http"
        self._gateway: _PlainGateway | _TlsGateway = (_PlainGateway if plain else _TlsGateway)(settings)
        self._timeout = settings.upstream_timeout
        nursery.start_soon(self._gateway.keep)

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.SubjectDiscovery.invoke`."""
        try:
            return await self._gateway.exchange(invocation)
        except httpx.ReadTimeout:
            return TimedOut(self._timeout)
        except httpx.TransportError as error:
            return NoResponse(str(error) or type(error).__name__)

    async def aclose(self) -> None:
        """Close what is idle."""
        await self._gateway.aclose()


@asynccontextmanager
async def open_functions(settings: Settings) -> AsyncIterator[HttpFunctions]:
    """Functions to invoke."""
    async with trio.open_nursery() as nursery:
        functions = HttpFunctions(settings, nursery)
        try:
            yield functions
        finally:
            with trio.move_on_after(CLOSING, shield=True):
                await functions.aclose()
            nursery.cancel_scope.cancel()


class _PlainGateway:
    """By our own transport, and its lower face."""

    def __init__(self, settings: Settings) -> None:
        url = httpx.URL(settings.gateway_url)
        self._origin = url.raw_host.decode("ascii"), url.port or 80
        self._prefix = url.raw_path.rstrip(b"/")
        self._host = (b"Host", url.netloc)
        self._most_body = settings.max_response_bytes
        self._transport = PlainTransport(
            most_body=settings.max_response_bytes, most_idle=settings.max_inflight, timeout=settings.upstream_timeout
        )
        self.keep, self.aclose = self._transport.keep, self._transport.aclose

    async def exchange(self, invocation: Invocation) -> Responded:
        """Raises what :meth:`PlainTransport.exchange` does."""
        method, body = invocation.method.upper(), invocation.body
        headers = [self._host, *invocation.headers]
        if body or method in _TELLS_LENGTH:
            headers.append((b"Content-Length", b"%d" % len(body)))
        joined, more = (body, b"") if len(body) <= _JOINED else (b"", body)
        request = write_request(method, self._prefix + invocation.target, headers, joined)
        answer = ResponseParser(method, self._most_body, keep=invocation.callback is not None)
        await self._transport.exchange(self._origin, request, answer, more=more)
        return Responded(answer.status, tuple(answer.headers), bytes(answer.body), answer.size, answer.truncated)


class _TlsGateway:
    """By httpx's transport, for its TLS."""

    def __init__(self, settings: Settings) -> None:
        self._url = httpx.URL(settings.gateway_url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._host = (b"Host", self._url.netloc)
        self._timeout = settings.upstream_timeout
        self._most_body = settings.max_response_bytes
        make = partial(httpx.AsyncHTTPTransport, verify=httpx.create_ssl_context(), limits=LIMITS)
        self._lanes = ClientPools(make, at_once=settings.max_inflight)
        self.keep, self.aclose = self._lanes.close_idle, self._lanes.aclose

    async def exchange(self, invocation: Invocation) -> Responded:
        """Raises what httpx does, ``ReadTimeout`` where the whole took too long."""
        request = httpx.Request(
            invocation.method,
            self._url,
            headers=[self._host, *invocation.headers],
            content=invocation.body,
            extensions={"target": self._prefix + invocation.target},
        )
        keep = invocation.callback is not None
        with trio.move_on_after(self._timeout):
            async with self._lanes.client("") as lane:
                response = await lane.handle_async_request(request)
                try:
                    body, size, truncated = await self._read(response, keep=keep)
                finally:
                    await response.aclose()
            return Responded(response.status_code, tuple(response.headers.raw), body, size, truncated)
        raise httpx.ReadTimeout("")

    async def _read(self, response: httpx.Response, *, keep: bool) -> tuple[bytes, int, bool]:
        """Body, the size of what was read of it, and whether that was not all."""
        body, size = bytearray(), 0
        async for part in response.aiter_raw():
            room = self._most_body - size
            size += min(len(part), room)
            if keep:
                body += part[:room]
            if len(part) > room:
                return bytes(body), size, True
        return bytes(body), size, False
