"""Where invocations go: the gateway's ``/function/`` path."""

from __future__ import annotations

import httpx
import trio

from ..config import Settings
from ..model import Attempted, Invocation, NoResponse, Responded, TimedOut
from .transport import PlainTransport


class HttpFunctions:
    """See :class:`worker.ports.Functions`.

    Requests go straight to the transport: what httpx's client adds (cookies, redirects, authentication) has no place
    between a queue and a function, and costs as much as the rest.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = httpx.URL(settings.gateway_url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._host = (b"Host", self._url.netloc)
        self._timeout = settings.upstream_timeout
        self._most_body = settings.max_response_bytes
        self._transport: httpx.AsyncBaseTransport = (
            PlainTransport(most_body=settings.max_response_bytes, most_idle=settings.max_inflight)
            if self._url.scheme == "http"
            else httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=settings.max_inflight))
        )

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        request = httpx.Request(
            invocation.method,
            self._url,
            headers=[self._host, *invocation.headers],
            content=invocation.body,
            extensions={"target": self._prefix + invocation.target, "keep_body": invocation.callback is not None},
        )
        with trio.move_on_after(self._timeout):
            try:
                return await self._exchange(request)
            except httpx.TransportError as error:
                return NoResponse(str(error) or type(error).__name__)
        return TimedOut(self._timeout)

    async def aclose(self) -> None:
        """Close what is idle."""
        await self._transport.aclose()

    async def _exchange(self, request: httpx.Request) -> Responded:
        response = await self._transport.handle_async_request(request)
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
        return bytes(body), response.extensions.get("size", len(body)), response.extensions.get("truncated", False)
