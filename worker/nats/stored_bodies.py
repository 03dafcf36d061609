"""The object store on the worker's side: bodies are read for Trio, deleted with their messages, and swept.

A body is deleted when its message has left the queue: by the worker that settled it, once that is confirmed. What a
crash leaves behind is a *leftover*, which a sweep deletes: an object that no message can refer to. A message is stored
just after its object. So an object is a leftover if it is old, and the first message of the queue and the first stored
callback were stored much later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
from trio_asyncio import aio_as_trio

from ..events import BrokerFailure, LeftoversDeleted
from ..model import StoredBody
from ..policy.stored_body import created_at
from ..ports import BodyLostError, BrokerUnavailableError, Emit
from ..settings import Settings
from .jetstream import JetStream
from .objects import ObjectStore, one_part, stream_config
from .wire import ApiError, ErrorCode, StreamState, nanoseconds

MARGIN = 3600.0
"""Seconds between an object and its message, at most: more than an upload takes, and than clocks differ."""
_SWEEP = 600.0
"""Seconds between two sweeps of one worker, on average. A sweep costs two requests, and one for each old object."""


def callbacks_stream(settings: Settings) -> str:
    """Return the name of the stream of stored callbacks."""
    return f"{settings.nats_stream}-callbacks"


class StoredBodies:
    """See :class:`worker.ports.Bodies`. :meth:`open` must be called first, on the asyncio side."""

    def __init__(self, jetstream: JetStream, settings: Settings, emit: Emit) -> None:
        self._jetstream, self._emit = jetstream, emit
        self._queue, self._callbacks = "", callbacks_stream(settings)
        self._store = ObjectStore(jetstream, stream_config(settings))
        self._kept: dict[str, float] = {}
        """Objects that are kept, and until when, as last read."""
        self._deleting: set[asyncio.Task[None]] = set()

    def open(self, settings: Settings) -> None:
        """Use the bucket of the queue, by the name of its stream at the server, which *settings* have."""
        self._queue = settings.nats_stream
        self._store = ObjectStore(self._jetstream, stream_config(settings))

    # Called on the Trio side.

    @asynccontextmanager
    async def read(self, body: StoredBody) -> AsyncIterator[AsyncIterator[bytes]]:
        """See :meth:`worker.ports.Bodies.read`."""
        ahead = _ReadAhead(self._store.read(body))
        try:
            yield ahead.parts()
        finally:
            with trio.CancelScope(shield=True):  # it only cancels, and does not wait for the server
                await aio_as_trio(ahead.close)()

    async def keep(self, body: StoredBody, seconds: float) -> None:
        """Keep a body for at least so many seconds from now, if it is still there."""
        with suppress(BodyLostError):
            await aio_as_trio(self._store.keep)(body, time.time() + seconds + MARGIN)

    async def delete(self, body: StoredBody) -> None:
        """Delete a body, also one that is kept."""
        await aio_as_trio(self._store.delete)(body.name)

    async def wait_deleted(self) -> None:
        """Wait for the deletions in the background."""
        if self._deleting:
            await aio_as_trio(asyncio.wait)([*self._deleting])

    # Called on the asyncio side.

    async def put(self, body: bytes) -> StoredBody:
        """Store a body to which a stored callback is going to refer."""
        return await self._store.put(one_part(body))

    def delete_soon(self, body: StoredBody) -> None:
        """Delete a body in the background, unless it is kept. One that cannot be deleted is left for a sweep."""
        task = asyncio.ensure_future(self._delete_unless_kept(body))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)

    async def run(self) -> None:
        """Sweep every few minutes, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP * (0.5 + random.random()))  # noqa: S311 -- workers take turns, no secret
            if self._queue and self._jetstream.connection.up:
                try:
                    await self.sweep()
                except (ApiError, BrokerUnavailableError) as error:
                    self._emit(BrokerFailure("sweeping large bodies", str(error)))

    async def sweep(self) -> None:
        """Delete the leftovers."""
        names = await self._store.names()
        if not names:
            return
        queue = await self._jetstream.stream(self._queue)
        now = nanoseconds(queue.ts) / 1e9 if queue.ts else time.time()
        callbacks = await self._callbacks_state()
        first = min([now, *(nanoseconds(each.first_ts) / 1e9 for each in (queue.state, *callbacks) if each.messages)])
        # A name has the time of its writer's clock: it only saves a request. The server's time decides.
        before = first - MARGIN
        swept = 0
        for name in names:
            if created_at(name) < before and await self._is_leftover(name, before, now):
                await self._store.delete(name)
                swept += 1
        self._kept = {name: until for name, until in self._kept.items() if name in {*names}}
        if swept:
            self._emit(LeftoversDeleted(swept))

    async def _callbacks_state(self) -> list[StreamState]:
        """Return the state of the stream of callbacks; an empty list if there is none."""
        try:
            return [(await self._jetstream.stream(self._callbacks)).state]
        except ApiError as error:
            if error.err_code != ErrorCode.STREAM_NOT_FOUND:
                raise
            return []

    async def _is_leftover(self, name: str, before: float, now: float) -> bool:
        if self._kept.get(name, 0.0) > now:
            return False
        if (found := await self._store.keep_until(name)) is None:
            return False
        stored, self._kept[name] = found
        return stored < before and self._kept[name] <= now

    async def _delete_unless_kept(self, body: StoredBody) -> None:
        with suppress(BrokerUnavailableError):
            found = await self._store.keep_until(body.name)
            if found is None or found[1] <= time.time():
                await self._store.delete(body.name)


class _ReadAhead:
    """A body that is read one part ahead, so that the server and the function work at the same time."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self._next: asyncio.Task[bytes | None] | None = None

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts, on the Trio side."""
        while (part := await aio_as_trio(self._take)()) is not None:
            yield part

    async def close(self) -> None:
        """Cancel what is being read."""
        if self._next:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    async def _take(self) -> bytes | None:
        part = await (self._next or self._read())
        self._next = asyncio.ensure_future(self._read()) if part is not None else None
        return part

    async def _read(self) -> bytes | None:
        return await anext(self._parts, None)
