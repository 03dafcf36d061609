"""Invocations: HTTP requests to the gateway's ``/function/`` path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import httpx
import trio

from ..config import Settings
from ..model import Attempted, Invocation, NoResponse, Responded, TimedOut
from .client_pools import LIMITS, ClientPools, open_client_pools
from .http11 import Fields, ResponseParser, write_request
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
        method, target = invocation.method.upper(), self._prefix + invocation.target
        response = ResponseParser(method, self._max_body, keep_body=invocation.callback is not None)
        try:
            await self._send(method, target, [self._host, *invocation.headers], invocation.body, response)
        except (httpx.ReadTimeout, trio.TooSlowError):
            return TimedOut(self._timeout)
        except httpx.TransportError as error:
            return NoResponse(str(error) or type(error).__name__)
        return Responded(
            response.status, tuple(response.headers), bytes(response.body), response.size, response.truncated
        )

    @abstractmethod
    async def _send(self, method: str, target: bytes, headers: Fields, body: bytes, response: ResponseParser) -> None:
        """Send a request and fill *response*. It is an error if no whole response arrives, or none in time."""


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

    async def _send(self, method: str, target: bytes, headers: Fields, body: bytes, response: ResponseParser) -> None:
        if body or method in _WITH_LENGTH:
            headers.append((b"Content-Length", b"%d" % len(body)))
        joined, more = (body, b"") if len(body) <= _MAX_JOINED else (b"", body)
        await self._transport.exchange(write_request(method, target, headers, joined), response, more=more)


class TlsFunctions(HttpFunctions):
    """Functions behind an https URL, through httpx."""

    def __init__(self, settings: Settings, pools: ClientPools[httpx.AsyncHTTPTransport]) -> None:
        super().__init__(settings)
        self._pools = pools

    async def _send(self, method: str, target: bytes, headers: Fields, body: bytes, response: ResponseParser) -> None:
        request = httpx.Request(method, self._url, headers=headers, content=body, extensions={"target": target})
        with trio.fail_after(self._timeout):
            async with self._pools.client("") as client, aclosing(await client.handle_async_request(request)) as answer:
                response.status, response.headers = answer.status_code, answer.headers.raw
                async for part in answer.aiter_raw():
                    response.on_body(part)
                    if response.complete:  # truncated
                        break
