"""Callbacks: results are posted to any http or https URL that a caller named."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache, partial

import httpx
import trio

from ..model import Busy, Callback
from ..policy.proxies import read_proxies
from ..settings import Settings
from .client_pools import CLOSE_TIMEOUT, LIMITS, ClientPools, open_client_pools
from .failures import describe_failure

MAX_PER_RECEIVER = 256
"""Concurrent callbacks to one receiver: common web servers accept this many (nginx: 512 connections a process).

A slow receiver delays only its own callbacks beyond this number, each by up to ``callback_timeout``. The callbacks of
all receivers together are bounded by :mod:`worker.policy.receivers`.
"""
_MAX_DRAINED = 65_536
"""Bytes of a response that are read so that its connection can be reused; with more the connection is closed."""
_DRAIN_TIME = 0.2
"""Seconds for which they are read. A response whose end takes longer costs more than a new connection."""

_SLICE = 65_536
"""Bytes of a body that are passed to httpx at once."""


class HttpCallbacks:
    """See :class:`worker.ports.Callbacks`. It uses httpx for TLS and proxies, and follows no redirect."""

    def __init__(self, pools: ClientPools[httpx.AsyncClient], timeout: float) -> None:
        self._pools, self._timeout = pools, timeout

    async def post(self, callback: Callback) -> int | str | Busy:
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
                    response = await client.send(request, stream=True)
                await _end(response)
                return _answer(response)
        except trio.TooSlowError:
            return f"no answer within {self._timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return describe_failure(error)
        finally:
            body.clear()


@asynccontextmanager
async def open_callbacks(settings: Settings) -> AsyncIterator[HttpCallbacks]:
    """Open :class:`HttpCallbacks`, and close their connections at the end."""
    # The context is created when it is first needed: loading the certificates takes a while.
    context = cache(partial(httpx.create_ssl_context, verify=not settings.tls_insecure))

    proxies = read_proxies(os.environ)

    def client(origin: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=context(),
            proxy=proxies.proxy_of(origin),
            trust_env=False,  # it would also send passwords of a .netrc
            timeout=None,  # noqa: S113 -- post() has a timeout
            limits=LIMITS,
        )

    async with open_client_pools(client, max_per_origin=MAX_PER_RECEIVER) as pools:
        yield HttpCallbacks(pools, settings.callback_timeout)


def _answer(response: httpx.Response) -> int | Busy:
    retry_after = response.headers.get("Retry-After") if response.status_code in (429, 503) else None
    return response.status_code if retry_after is None else Busy(response.status_code, retry_after)


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


async def _end(response: httpx.Response) -> None:
    """End a response whose status has arrived, which is the answer. Read a short body, to reuse the connection."""
    with trio.move_on_after(_DRAIN_TIME), suppress(httpx.HTTPError, OSError):
        read = 0
        async for part in response.aiter_raw():
            read += len(part)
            if read > _MAX_DRAINED:
                break
    with trio.move_on_after(CLOSE_TIMEOUT):  # this closes the connection of a response that has not ended
        await response.aclose()
