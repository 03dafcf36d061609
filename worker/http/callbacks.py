"""Where results go: any http or https URL that a caller named."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from ..config import Settings
from ..model import Callback
from .client_pools import CLOSING, LIMITS, ClientPools

MAX_PER_RECEIVER = 256
"""Callbacks to one receiver at once: what a web server with common settings takes (nginx: 512 connections a process).

There is no bound on all: each callback holds its message's slot, of which there are ``max_inflight``. A slow receiver
holds up those of its own callbacks that are beyond this number, for ``callback_timeout`` at a time, and no others.
"""
_READ = 65_536
"""Bytes of an answer that are read so that its connection can be used again; of more, the connection is closed."""


class HttpCallbacks:
    """See :class:`worker.ports.Callbacks`. httpx's own client, for TLS and proxies; no redirect is followed.

    Args:
        settings: the bounds, and whether certificates are verified.
        nursery: runs what closes idle connections.
    """

    def __init__(self, settings: Settings, nursery: trio.Nursery) -> None:
        self._verify = not settings.tls_insecure
        self._timeout = settings.callback_timeout
        self._context: ssl.SSLContext | None = None
        self._lanes = ClientPools(self._client, at_once=MAX_PER_RECEIVER)
        nursery.start_soon(self._lanes.close_idle)

    async def post(self, callback: Callback) -> int | str:
        """See :meth:`worker.ports.Callbacks.post`. The wait for other callbacks to the same receiver is not timed."""
        try:
            url = httpx.URL(callback.url)
            request = httpx.Request(
                "POST", url, headers=[(b"Host", url.netloc), *callback.headers], content=callback.body
            )
            async with self._lanes.client(f"{url.scheme}://{url.netloc.decode()}") as client:
                with trio.fail_after(self._timeout):
                    return await _send(client, request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return str(error) or type(error).__name__
        except trio.TooSlowError:
            return f"no answer within {self._timeout:g} s"

    async def aclose(self) -> None:
        """Close what is idle."""
        await self._lanes.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._context is None:  # made when first needed: loading the certificates takes a while
            self._context = httpx.create_ssl_context(verify=self._verify)
        return httpx.AsyncClient(verify=self._context, timeout=None, limits=LIMITS)  # noqa: S113 -- post() bounds it all


@asynccontextmanager
async def open_callbacks(settings: Settings) -> AsyncIterator[HttpCallbacks]:
    """Callbacks to post."""
    async with trio.open_nursery() as nursery:
        callbacks = HttpCallbacks(settings, nursery)
        try:
            yield callbacks
        finally:
            with trio.move_on_after(CLOSING, shield=True):
                await callbacks.aclose()
            nursery.cancel_scope.cancel()


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> int:
    response = await client.send(request, stream=True)
    try:
        read = 0
        async for part in response.aiter_raw():
            read += len(part)
            if read > _READ:
                break
    except httpx.TransportError:
        pass  # it has answered; the rest of what it says does not matter
    finally:
        await response.aclose()
    return response.status_code
