"""Rejections, and bodies that are read within limits of size, time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope

from ..policy.parse import whole_number

_BODY_TIMEOUT = 60.0
"""Seconds for a caller to send a body that fits a message: 17 kB/s for a megabyte."""
_MAX_BODY_MEMORY = 128 * 2**20
"""Bytes of all bodies being read or stored. Memory holds each about three times: raw, in base64, on the wire."""


class RequestRejectedError(Exception):
    """A request that is answered with an error of *status* and *text*."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})

    def response(self) -> Response:
        """Return the rejection as a response."""
        return PlainTextResponse(f"{self.text}\n", self.status, self.headers)


class CallerDisconnectedError(Exception):
    """The caller closed its connection before the response."""


class BodyReader:
    """Reader of request bodies, with a limit for each and one for all together."""

    def __init__(self, max_total: int = _MAX_BODY_MEMORY, within: float = _BODY_TIMEOUT) -> None:
        self._max_total = max_total
        self._within = within
        self._total = 0

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive, max_bytes: int) -> AsyncIterator[bytes]:
        """Read a body of at most *max_bytes*; it counts towards the total until the block is left.

        Raises:
            RequestRejectedError: the body is larger (413) or too slow (408), or there is no memory for it now (503).
            CallerDisconnectedError: the caller closed its connection before the end of the body.
        """
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if (whole_number(length.decode("latin-1"), high=2**64 - 1, digits=20) or 0) > max_bytes:
            raise _body_too_large(max_bytes, expects_continue=any(name == b"expect" for name, _ in scope["headers"]))
        size = 0
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._within):
                async for chunk in body_chunks(receive):
                    chunks.append(chunk)
                    size += len(chunk)
                    self._total += len(chunk)
                    if size > max_bytes:
                        raise _body_too_large(max_bytes)
                    if self._total > self._max_total:
                        raise RequestRejectedError(
                            503, "too many large requests at once: try again", {"Retry-After": "1"}
                        )
            yield b"".join(chunks)
        except TimeoutError:
            raise RequestRejectedError(
                408, f"the body did not arrive within {self._within:g} s", {"Connection": "close"}
            ) from None
        finally:
            self._total -= size


async def body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the chunks of a request's body.

    Raises:
        CallerDisconnectedError: the caller closed its connection before the end of the body.
    """
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise CallerDisconnectedError
        yield event.get("body", b"")
        more = event.get("more_body", False)


def _body_too_large(max_bytes: int, *, expects_continue: bool = False) -> RequestRejectedError:
    # A caller that waits for "100 Continue" may send the body or not, so the connection cannot be used again.
    headers = {"Connection": "close"} if expects_continue else {}
    return RequestRejectedError(
        413, f"the body is too large: a message to the queue has room for about {max_bytes} bytes", headers
    )
