"""What the gateway's handlers share: refusals, and bodies read within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope

_BODY_TIMEOUT = 60.0
"""Seconds for a caller to send a body that fits a message: 17 kB/s for a megabyte. Nginx waits as long for a part."""
_MAX_BODY_MEMORY = 128 * 2**20
"""Bytes of all bodies being read or stored. Each stands in memory about three times: raw, in base64, on the wire."""


class RequestRejectedError(Exception):
    """A request that gets *status* and *text* instead of what it asked for."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})

    def response(self) -> Response:
        return PlainTextResponse(f"{self.text}\n", self.status, self.headers)


class CallerDisconnectedError(Exception):
    """Nobody waits for the answer any more."""


class BodyReader:
    """Reads request bodies: each within a bound and a time, and all together within another bound."""

    def __init__(self, most_at_once: int = _MAX_BODY_MEMORY, within: float = _BODY_TIMEOUT) -> None:
        self._most_at_once = most_at_once
        self._within = within
        self._held = 0

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive, most: int) -> AsyncIterator[bytes]:
        """The body, of *most* bytes. It counts as held until the context is left.

        Raises:
            RequestRejectedError: it is longer (413), comes too slowly (408), or there is no room for it now (503).
            CallerDisconnectedError: it will never be complete.
        """
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > most:
            raise _body_too_large(most, waits=any(name == b"expect" for name, _ in scope["headers"]))
        held = 0
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._within):
                async for chunk in body_chunks(receive):
                    chunks.append(chunk)
                    held += len(chunk)
                    self._held += len(chunk)
                    if held > most:
                        raise _body_too_large(most)
                    if self._held > self._most_at_once:
                        raise RequestRejectedError(
                            503, "too many large requests at once: try again", {"Retry-After": "1"}
                        )
            yield b"".join(chunks)
        except TimeoutError:
            raise RequestRejectedError(
                408, f"the body did not come within {self._within:g} s", {"Connection": "close"}
            ) from None
        finally:
            self._held -= held


async def body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body in the pieces in which it comes.

    Raises:
        CallerDisconnectedError: it will never be complete.
    """
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise CallerDisconnectedError
        yield event.get("body", b"")
        more = event.get("more_body", False)


def _body_too_large(most: int, *, waits: bool = False) -> RequestRejectedError:
    """A caller that waits for leave to send its body may now send it or not, so its connection is of no more use."""
    headers = {"Connection": "close"} if waits else {}
    return RequestRejectedError(
        413, f"the body is too large: a message to the queue has room for about {most} bytes", headers
    )
