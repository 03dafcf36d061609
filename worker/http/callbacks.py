"""Where results go: any http or https URL that a caller named."""

from __future__ import annotations

import httpx
import trio

from ..config import Settings
from ..model import Callback

_READ = 65_536
"""Bytes of an answer that are read so that its connection can be used again; of more, the connection is closed."""


class HttpCallbacks:
    """See :class:`worker.ports.Callbacks`. httpx's own transport, for TLS and proxies; no redirect is followed."""

    def __init__(self, settings: Settings) -> None:
        self._verify = not settings.tls_insecure
        self._timeout = settings.callback_timeout
        self._client: httpx.AsyncClient | None = None

    async def post(self, callback: Callback) -> int | str:
        """See :meth:`worker.ports.Callbacks.post`."""
        if self._client is None:  # made when first needed: loading the certificates takes a while
            self._client = httpx.AsyncClient(
                verify=self._verify,
                timeout=None,  # noqa: S113 -- the scope below bounds the whole exchange
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            )
        try:
            url = httpx.URL(callback.url)
            request = httpx.Request(
                "POST", url, headers=[(b"Host", url.netloc), *callback.headers], content=callback.body
            )
            with trio.move_on_after(self._timeout):
                return await _send(self._client, request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return str(error) or type(error).__name__
        return f"no answer within {self._timeout:g} s"

    async def aclose(self) -> None:
        """Close what is idle."""
        if self._client:
            await self._client.aclose()


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
