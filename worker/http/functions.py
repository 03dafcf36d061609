"""Invocations: HTTP requests to the gateway's ``/function/`` path."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import httpx
import trio
from msgspec.structs import replace

from ..config import Settings
from ..model import Attempted, Invocation, NoResponse, Responded, TimedOut
from .client_pools import LIMITS, ClientPools, open_client_pools
from .http11 import UNRESERVED, Fields, ResponseParser
from .result_memory import ResultMemory, ResultParser
from .transport import PlainTransport, open_transport


class HttpFunctions:
    """See :class:`worker.ports.Functions`.

    The gateway is near, so no proxy is used, whatever the environment names. Redirects, cookies and authentication have
    no place between a queue and a function, so requests and responses pass unchanged.
    """

    def __init__(self, settings: Settings, transport: PlainTransport | TlsTransport) -> None:
        url = httpx.URL(settings.gateway_url)
        self._prefix, self._host = url.raw_path.rstrip(b"/"), (b"Host", url.netloc)
        self._timeout, self._max_body = settings.upstream_timeout, settings.max_response_bytes
        self._results = ResultMemory(settings.max_results_bytes)
        self._transport = transport

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        method = invocation.method.upper()
        if invocation.callback is not None:
            return await self._invoke_for_result(invocation, ResultParser(method, self._max_body, self._results))
        return await self._exchange(invocation, ResponseParser(method, self._max_body, keep_body=False))

    async def _invoke_for_result(self, invocation: Invocation, response: ResultParser) -> Attempted:
        attempted: Attempted | None = None
        try:
            attempted = await self._exchange(invocation, response)
        finally:
            if response.reservation and not isinstance(attempted, Responded):
                response.reservation.release()
        if response.reservation and isinstance(attempted, Responded):
            response.reservation.shrink(len(attempted.body))
            return replace(attempted, release=response.reservation.release)
        return attempted

    async def _exchange(self, invocation: Invocation, response: ResponseParser) -> Attempted:
        try:
            fields, target = [self._host, *invocation.headers], self._prefix + invocation.target
            await self._transport.exchange(invocation.method.upper(), target, fields, invocation.body, response)
        except trio.TooSlowError:
            return TimedOut(self._timeout)
        except httpx.TransportError as error:
            return NoResponse(str(error) or type(error).__name__)
        body = bytes(response.body)
        response.body.clear()  # now, so that memory holds a result once
        return Responded(response.status, tuple(response.headers), body, response.size, response.truncated)


class TlsTransport:
    """Client for an https URL, through httpx. It does the same as :class:`PlainTransport`."""

    def __init__(self, url: httpx.URL, pools: ClientPools[httpx.AsyncHTTPTransport], exchange_timeout: float) -> None:
        self._url, self._pools, self._timeout = url, pools, exchange_timeout

    async def exchange(self, method: str, target: bytes, fields: Fields, body: bytes, response: ResponseParser) -> None:
        """See :meth:`PlainTransport.exchange`."""
        request = httpx.Request(method, self._url, headers=fields, content=body, extensions={"target": target})
        with trio.fail_after(self._timeout) as scope:
            async with self._pools.client("") as client, aclosing(await client.handle_async_request(request)) as answer:
                response.status, response.headers = answer.status_code, answer.headers.raw
                async for part in answer.aiter_raw():
                    response.on_body(part)
                    if response.size > UNRESERVED and not response.reserve((memory := trio.Event()).set):
                        left, scope.deadline = scope.deadline - trio.current_time(), math.inf
                        await memory.wait()
                        scope.deadline = trio.current_time() + left
                    if response.complete:  # truncated
                        break


@asynccontextmanager
async def open_functions(settings: Settings) -> AsyncIterator[HttpFunctions]:
    """Open :class:`HttpFunctions`, and close their connections at the end."""
    url = httpx.URL(settings.gateway_url)
    if url.scheme == "http":
        host, port, timeout = url.raw_host.decode("ascii"), url.port or 80, settings.upstream_timeout
        async with open_transport(host, port, max_idle=settings.max_inflight, exchange_timeout=timeout) as transport:
            yield HttpFunctions(settings, transport)
    else:
        make = partial(httpx.AsyncHTTPTransport, verify=httpx.create_ssl_context(), limits=LIMITS)
        async with open_client_pools(make, max_per_origin=settings.max_inflight) as pools:
            yield HttpFunctions(settings, TlsTransport(url, pools, settings.upstream_timeout))
