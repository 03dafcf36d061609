"""Callbacks: results are posted to any http or https URL that a caller named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cache, partial

import httpx
import trio

from ..config import Settings
from ..model import Callback
from .client_pools import LIMITS, ClientPools, open_client_pools

MAX_PER_RECEIVER = 256
"""Concurrent callbacks to one receiver: common web servers accept this many (nginx: 512 connections a process).

There is no limit over all receivers: each callback occupies its message's slot, of which there are ``max_inflight``. A
slow receiver delays only its own callbacks beyond this number, each by up to ``callback_timeout``.
"""
_MAX_DRAINED = 65_536
"""Bytes of a response that are read so that its connection can be reused; with more the connection is closed."""

_SLICE = 65_536
"""Bytes of a body that are passed to httpx at once."""


class HttpCallbacks:
    """See :class:`worker.ports.Callbacks`. It uses httpx for TLS and proxies, and follows no redirect."""

    def __init__(self, pools: ClientPools[httpx.AsyncClient], timeout: float) -> None:
        self._pools, self._timeout = pools, timeout

    async def post(self, callback: Callback) -> int | str:
        """See :meth:`worker.ports.Callbacks.post`. The wait for other callbacks to the same receiver is not timed."""
        body = _Slices(callback.body)
        try:
            url = httpx.URL(callback.url)
            headers = [(b"Host", url.netloc), *callback.headers]
            if len(callback.body) <= _SLICE:
                request = httpx.Request("POST", url, headers=headers, content=callback.body)
            else:
                headers.append((b"Content-Length", b"%d" % len(callback.body)))
                request = httpx.Request("POST", url, headers=headers, stream=body)
            async with self._pools.client(f"{url.scheme}://{url.netloc.decode()}") as client:
                with trio.fail_after(self._timeout):
                    return await _send(client, request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return str(error) or type(error).__name__
        except trio.TooSlowError:
            return f"no answer within {self._timeout:g} s"
        finally:
            body.clear()


@asynccontextmanager
async def open_callbacks(settings: Settings) -> AsyncIterator[HttpCallbacks]:
    """Open :class:`HttpCallbacks`, and close their connections at the end."""
    # The context is created when it is first needed: loading the certificates takes a while.
    context = cache(partial(httpx.create_ssl_context, verify=not settings.tls_insecure))

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=context(), timeout=None, limits=LIMITS)  # noqa: S113 -- post() has a timeout

    async with open_client_pools(client, max_per_origin=MAX_PER_RECEIVER) as pools:
        yield HttpCallbacks(pools, settings.callback_timeout)


class _Slices(httpx.AsyncByteStream):
    """A large body in slices: TLS would copy it as a whole, twice."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def clear(self) -> None:
        """Release the body: httpx's objects refer to each other, so they stay in memory for a while."""
        self._body = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), _SLICE):
            yield self._body[start : start + _SLICE]


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> int:
    async with aclosing(await client.send(request, stream=True)) as response:
        try:
            read = 0
            async for part in response.aiter_raw():
                read += len(part)
                if read > _MAX_DRAINED:
                    break
        except httpx.TransportError:
            pass  # the status has arrived, and the body does not matter
        return response.status_code
