"""The worker's transport behind httpx's interface, so that a test can compare both on the same servers."""

from __future__ import annotations

import math

import httpx

from worker.http.http11 import ResponseParser
from worker.http.transport import open_transport


class HttpxAdapter(httpx.AsyncBaseTransport):
    """Sends each request on a connection of its own."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See :meth:`httpx.AsyncBaseTransport.handle_async_request`. The response's body is read here."""
        response = _NamedResponse(request.method, 1 << 24)
        fields = [field for field in request.headers.raw if field[0] != b"Content-Length"]  # the transport adds it
        host, port = request.url.raw_host.decode("ascii"), request.url.port or 80
        failure: httpx.TransportError | None = None
        async with open_transport(host, port, max_idle=1, exchange_timeout=math.inf) as transport:
            try:
                await transport.exchange(request.method, request.url.raw_path, fields, await request.aread(), response)
            except httpx.TransportError as error:
                failure = error  # raised outside of the transport's nursery, which would wrap it in a group
        if failure:
            raise failure
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=httpx.ByteStream(bytes(response.body)),
            extensions={"http_version": response.version, "reason_phrase": response.reason},
        )


class _NamedResponse(ResponseParser):
    """A response with the parts of its status line that only httpx uses."""

    __slots__ = ("reason", "version")

    def __init__(self, method: str, max_body: int) -> None:
        super().__init__(method, max_body)
        self.reason = self.version = b""

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason

    def on_headers_complete(self) -> None:
        if not self.complete:
            self.version = b"HTTP/" + self._parser.get_http_version().encode()
        super().on_headers_complete()

    def _skip_interim(self) -> None:
        super()._skip_interim()
        self.reason = b""
