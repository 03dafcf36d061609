"""Bodies that are too large for a message: read part by part, and stored as objects while they arrive."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope

from ..model import StoredBody
from ..nats.jetstream import JetStream
from ..nats.objects import MAX_MEMORY, ObjectStore, stream_config
from ..nats.wire import ApiError
from ..policy.parse import whole_number
from ..ports import BrokerUnavailableError, Emit
from ..settings import Settings
from .queues import FindStream

RETRY_AFTER = {"Retry-After": "1"}
"""Seconds: an election or a reconnect takes one or a few."""
_BODY_TIMEOUT = 60.0
"""Seconds for a caller to send a body that fits a message: 17 kB/s for a megabyte."""
_MIN_RATE = 100_000
"""Bytes a second of what a larger body has more: the default of max_body_bytes may take 18 minutes."""
_MAX_BODY_MEMORY = 128 * 2**20
"""Bytes of all bodies being read or stored. Memory holds each about three times: raw, in base64, on the wire."""
_TOO_LARGE = "the body is too large: max_body_bytes allows {} bytes"


class BodyReader:
    """Reader of request bodies, with a limit for each and one for the memory of all together."""

    def __init__(self, max_total: int = _MAX_BODY_MEMORY, within: float = _BODY_TIMEOUT) -> None:
        self.max_total, self.within = max_total, within
        self.total = 0

    @asynccontextmanager
    async def read(
        self, scope: Scope, receive: Receive, max_bytes: int, room: int | None = None
    ) -> AsyncIterator[bytes | AsyncIterator[bytes]]:
        """Read a body of at most *max_bytes*: all of it, or its parts as they arrive if it has more than *room* bytes.

        What memory holds of it counts towards the total until the block is left. Errors are raised by the block, and by
        the iterator of the parts.

        Raises:
            HTTPException: the body is larger (413) or too slow (408), or there is no memory for it now (503).
            ClientDisconnect: the caller closed its connection before the end of the body.
        """
        room = max_bytes if room is None else min(room, max_bytes)
        text = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        length = whole_number(text.decode("latin-1"), high=2**64 - 1, digits=20) or 0
        if length > max_bytes:
            # A caller that waits for "100 Continue" may send the body or not, so the connection cannot be used again.
            expects_continue = any(name == b"expect" for name, _ in scope["headers"])
            headers = {"Connection": "close"} if expects_continue else None
            raise HTTPException(413, _TOO_LARGE.format(max_bytes), headers)
        body = _IncomingBody(self, Request(scope, receive).stream(), max_bytes)
        try:
            if length <= room:
                await body.receive(room)
            if body.size <= room and body.complete:
                yield b"".join(body.parts)
            else:
                body.hold(MAX_MEMORY)
                yield body.iterate()
        finally:
            self.total -= body.held


class _IncomingBody:
    """A body that arrives."""

    def __init__(self, reader: BodyReader, stream: AsyncIterator[bytes], max_bytes: int) -> None:
        self._reader, self._stream, self._max_bytes = reader, stream, max_bytes
        self._began = asyncio.get_running_loop().time()
        self.parts: deque[bytes] = deque()
        """The parts that have arrived and were not taken."""
        self.size = self.held = 0
        self.complete = self._is_streamed = False

    async def receive(self, size: int) -> None:
        """Wait for the end, or for more than *size* bytes in all. One timer is enough: few bodies come late."""
        within = self._reader.within + self.size / _MIN_RATE * self._is_streamed
        try:
            async with asyncio.timeout_at(self._began + within):
                while self.size <= size and not self.complete:
                    self._take(await anext(self._stream, None))
        except TimeoutError:
            text = f"the body did not arrive within {within:g} s: {self.size} bytes did"
            raise HTTPException(408, text, {"Connection": "close"}) from None

    def _take(self, part: bytes | None) -> None:
        """Keep a part that has arrived, or note the end."""
        if part is None:
            self.complete = True
            return
        self.size += len(part)
        if self.size > self._max_bytes:
            raise HTTPException(413, _TOO_LARGE.format(self._max_bytes))
        self.parts.append(part)
        if not self._is_streamed:
            self.hold(self.size)

    def hold(self, size: int) -> None:
        """Count so many bytes of memory for this body, if they are more than before."""
        if (more := size - self.held) > 0:
            self.held, self._reader.total = size, self._reader.total + more
            if self._reader.total > self._reader.max_total:
                raise HTTPException(503, "too many large requests at once: try again", RETRY_AFTER)

    async def iterate(self) -> AsyncIterator[bytes]:
        """Yield the parts, and receive the next one when the last one was taken."""
        self._is_streamed = True
        while True:
            while self.parts:
                yield self.parts.popleft()
            if self.complete:
                return
            await self.receive(self.size)


class LargeBodies:
    """The object store of a queue, opened when the first large body arrives."""

    def __init__(self, jetstream: JetStream, settings: Settings, emit: Emit, find: FindStream) -> None:
        self._jetstream, self._settings, self._emit, self._find = jetstream, settings, emit, find
        self._store: ObjectStore | None = None

    async def put(self, parts: AsyncIterable[bytes]) -> StoredBody:
        """Store a body; see :meth:`worker.nats.objects.ObjectStore.put`."""
        try:
            if self._store is None:
                named = await self._find(self._jetstream, self._settings, self._emit)
                self._store = ObjectStore(self._jetstream, stream_config(named))
            return await self._store.put(parts)
        except ApiError as error:
            raise BrokerUnavailableError(f"JetStream: {error.description}") from None

    def delete_soon(self, body: StoredBody) -> None:
        """Delete a body to which no message refers, in the background."""
        if self._store:
            self._store.delete_soon(body.name)


async def hashed(parts: AsyncIterable[bytes], digest: hashlib.blake2b) -> AsyncIterator[bytes]:
    """Yield *parts*, and add each to *digest*."""
    async for part in parts:
        digest.update(part)
        yield part
