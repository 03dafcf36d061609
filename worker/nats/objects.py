"""The object store: large bodies in a bucket of NATS, in chunks, with their size and digest.

The layout is that of NATS's own object stores (ADR-20), so ``nats object ls`` and ``get`` work: a stream
``OBJ_<bucket>``, chunks on ``$O.<bucket>.C.<id>``, and one message with the meta data on ``$O.<bucket>.M.<name in
base64>``. nats-py's object store is not used. It reads from blocking files, waits for the confirmation of each chunk
before the next, and holds a whole object in memory to read it. Here a body is written from an asynchronous iterator
with a few unconfirmed chunks, and read chunk by chunk, each by one request. A request needs no consumer, so a reader
that dies leaves nothing behind.

A name is chosen so that its base64 is also the id. Then one purge deletes chunks and meta data together. It begins with
the time, and most of it is random: no caller can guess the name of another caller's body.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import msgspec

from ..model import StoredBody
from ..policy.stored_body import check_reference, is_object_name, new_name
from ..ports import BodyLostError, BrokerUnavailableError, MisconfiguredError
from ..settings import Settings
from .connection import NoRespondersError
from .jetstream import JetStream
from .object_info import CHUNK, KEEP_UNTIL, ObjectInfo, ObjectOptions, read_info
from .wire import ApiError, ErrorCode, PubAck, StoredMessage, StreamConfig, nanoseconds

T = TypeVar("T")

_CHUNK_ROOM = 1_024
"""Bytes of a message that are left beside a chunk."""
_MAX_UNCONFIRMED = 8
"""Chunks of one body that are published and not confirmed: enough to hide the round trip."""
_FULL = {
    *(ErrorCode.STREAM_STORE_FAILED, ErrorCode.INSUFFICIENT_RESOURCES, ErrorCode.ACCOUNT_RESOURCES_EXCEEDED),
    *(ErrorCode.STORAGE_RESOURCES_EXCEEDED, ErrorCode.MEMORY_RESOURCES_EXCEEDED),
}
MAX_MEMORY = (_MAX_UNCONFIRMED + 2) * CHUNK
"""Bytes in memory of a body while it is stored."""
_GONE = {ErrorCode.NO_MESSAGE_FOUND, ErrorCode.STREAM_NOT_FOUND}
_SMALLEST_BUCKET = 256 * 2**20
"""Bytes: a bucket that is smaller holds too few of the largest bodies to be of use."""


def stream_config(settings: Settings) -> StreamConfig:
    """Return the configuration of the bucket's stream; *settings* have the name of the queue's stream at the server."""
    bucket = f"{settings.nats_stream}-bodies"
    return StreamConfig(
        name=f"OBJ_{bucket}",
        subjects=(f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"),
        retention="limits",
        discard="new",
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
        max_bytes=settings.nats_bodies_max_bytes,
        allow_direct=True,
        allow_rollup_hdrs=True,
    )


class ObjectStore:
    """The bucket of one queue, on asyncio.

    Methods raise :class:`worker.ports.BrokerUnavailableError` where the server does not answer, or refuses.
    """

    def __init__(self, jetstream: JetStream, config: StreamConfig) -> None:
        self._jetstream, self._config = jetstream, config
        self.stream = config.name
        self.bucket = config.name.removeprefix("OBJ_")
        self._found = False
        """Whether the bucket was there when it was last looked for."""
        self._deleting: set[asyncio.Task[None]] = set()

    async def put(self, parts: AsyncIterable[bytes], *, keep_until: float = 0.0) -> StoredBody:
        """Store a body, and return the reference to it once all of it is confirmed.

        No more than a few chunks are in memory, so *parts* is read as fast as they are stored. If it raises an
        exception, or the broker fails, what was stored is deleted. The bucket is created if it is missing.
        *keep_until*: until then the body is no leftover, whether a message refers to it or not (s since the epoch).
        """
        name = new_name(time.time(), secrets.token_hex(15))
        with self._translated():
            if not self._found:
                await self._create()
            try:
                return await self._put(name, parts, keep_until)
            except Exception as error:
                self._found = self._found and not isinstance(error, NoRespondersError)
                self.delete_soon(name)
                raise

    async def _put(self, name: str, parts: AsyncIterable[bytes], keep_until: float) -> StoredBody:
        room = min(CHUNK, self._jetstream.connection.client.max_payload - _CHUNK_ROOM)
        digest, size, chunks, last = hashlib.sha256(), 0, 0, 0
        unconfirmed: deque[asyncio.Task[PubAck]] = deque()

        async def confirm(most: int) -> None:
            nonlocal last
            while len(unconfirmed) > most:
                sequence = (await unconfirmed.popleft()).seq
                if sequence <= last:  # chunks are read in the order of their sequences
                    raise BrokerUnavailableError("the chunks of a body were stored in another order")
                last = sequence

        try:
            async for chunk in _split(parts, room):
                digest.update(chunk)
                size, chunks = size + len(chunk), chunks + 1
                publish = self._jetstream.publish(self._chunks(name), chunk, {})
                unconfirmed.append(asyncio.ensure_future(publish))
                # The first one shows whether the bucket is there.
                await confirm(_MAX_UNCONFIRMED - 1 if last else 0)
            await confirm(0)
        except Exception:
            # A purge could overtake a chunk that is being stored.
            await asyncio.gather(*unconfirmed, return_exceptions=True)
            raise
        finally:
            for each in unconfirmed:
                each.cancel()
        text = f"SHA-256={b64encode(digest.digest(), b'-_').decode()}"
        meta = ObjectInfo(name, self.bucket, _id(name), size, chunks, text, options=ObjectOptions(room))
        await self._write_meta(meta, keep_until)
        return StoredBody(name, size, text)

    async def read(self, body: StoredBody) -> AsyncIterator[bytes]:
        """Yield the chunks of a body. The last one is yielded only if all of it has the size and the digest.

        Raises:
            BodyLostError: there is no such body, or it differs from its reference.
        """
        check_reference(body)
        with self._translated():
            found = await self._read_info(body.name)
            if found is None:
                raise BodyLostError(f"the body of {body.size} bytes is not stored any more: {body.name}")
            if (found.size, found.digest, found.nuid) != (body.size, body.digest, _id(body.name)):
                raise BodyLostError(f"the stored body is not the one that was sent: {body.name}")
            digest, left, sequence, last = hashlib.sha256(), body.size, 0, b""
            while left > 0:
                next_chunk = self._jetstream.next_message(self.stream, sequence + 1, self._chunks(body.name))
                if (chunk := await _unless_gone(next_chunk)) is None:
                    raise BodyLostError(f"the last {left} of {body.size} bytes of the body are not stored: {body.name}")
                sequence, left = chunk.seq, left - len(chunk.data)
                last = chunk.data
                digest.update(last)
                if left > 0:
                    yield last
            if left < 0 or body.digest != f"SHA-256={b64encode(digest.digest(), b'-_').decode()}":
                raise BodyLostError(f"the stored body is damaged: {body.name}")
            if last:
                yield last

    async def keep(self, body: StoredBody, until: float) -> bool:
        """Keep a body until a time (s since the epoch), or longer where that is set; return whether it is stored."""
        with self._translated():
            if (found := await self._read_info(body.name)) is None:
                return False
            if found.keep_until < until:
                await self._write_meta(found, until)
        return True

    async def keep_until(self, name: str) -> tuple[float, float] | None:
        """Return when an object was stored, and until when it is kept (s since the epoch); None if it is not there.

        An object without its meta data, which a crash leaves behind, has the time of one of its chunks.
        """
        with self._translated():
            if stored := await self._last(self._meta(name)):
                with suppress(ValueError):
                    return nanoseconds(stored.time) / 1e9, read_info(stored.data).keep_until
            elif not (stored := await self._last(self._chunks(name))):
                return None
            return nanoseconds(stored.time) / 1e9, 0.0

    async def delete(self, name: str) -> None:
        """Delete an object, chunks and meta data together; none of that name is no error."""
        with self._translated():
            await _unless_gone(self._jetstream.purge(self.stream, f"$O.{self.bucket}.*.{_id(name)}"))

    def delete_soon(self, name: str) -> None:
        """Delete an object in the background. One that cannot be deleted is left for the next sweep."""
        task = asyncio.ensure_future(self._try_to_delete(name))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)

    async def wait_deleted(self) -> None:
        """Wait for the deletions in the background."""
        while self._deleting:
            await asyncio.wait([*self._deleting])

    async def names(self) -> list[str]:
        """Return the names of all objects, also of those that lack their meta data or chunks; not foreign ones."""
        with self._translated():
            pattern = f"$O.{self.bucket}.*.*"
            info = await _unless_gone(self._jetstream.stream_with_subjects(self.stream, pattern))
        ids = {subject.rpartition(".")[2] for subject in (info.state.subjects if info else ())}
        return sorted(filter(None, map(_name, ids)))

    async def _try_to_delete(self, name: str) -> None:
        with suppress(BrokerUnavailableError):
            await self.delete(name)

    async def _create(self) -> None:
        """Find or create the bucket, smaller than wanted where the server has no room for more."""
        config = self._config
        while True:
            try:
                await self._jetstream.find_or_create_stream(config)
            except ApiError as error:
                smaller = (config.max_bytes or 0) // 2
                if error.err_code not in _FULL or smaller < _SMALLEST_BUCKET:
                    raise
                config = msgspec.structs.replace(config, max_bytes=smaller)
            else:
                self._found = True
                return

    async def _read_info(self, name: str) -> ObjectInfo | None:
        if (stored := await self._last(self._meta(name))) is None:
            return None
        try:
            meta = read_info(stored.data)
        except ValueError as error:
            raise BodyLostError(f"the stored body has {error}: {name}") from None
        return None if meta.deleted else meta

    async def _write_meta(self, meta: ObjectInfo, keep_until: float) -> None:
        if keep_until:
            meta.metadata = meta.metadata | {KEEP_UNTIL: str(round(keep_until))}
        payload = msgspec.json.encode(meta)
        await self._jetstream.publish(self._meta(meta.name), payload, {"Nats-Rollup": "sub"})

    async def _last(self, subject: str) -> StoredMessage | None:
        return await _unless_gone(self._jetstream.last_message(self.stream, subject))

    def _chunks(self, name: str) -> str:
        return f"$O.{self.bucket}.C.{_id(name)}"

    def _meta(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{_id(name)}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            if error.err_code in _FULL:
                raise NoRoomError(
                    f"the store for large bodies has no room: raise max_bytes of the stream {self.stream}"
                    f" ({error.description})"
                ) from None
            raise BrokerUnavailableError(f"the store for large bodies, stream {self.stream}: {error}") from None
        except MisconfiguredError as error:
            raise BrokerUnavailableError(f"the store for large bodies: {error}") from None


class NoRoomError(BrokerUnavailableError):
    """The bucket has no room for another body."""


async def _unless_gone(answer: Awaitable[T]) -> T | None:
    """Return the answer; None where there is no such message, or no bucket."""
    try:
        return await answer
    except ApiError as error:
        if error.err_code not in _GONE:
            raise
        return None


async def one_part(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body that is in memory."""
    yield body


async def _split(parts: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """Yield the bytes of *parts* in pieces of *size*; the last one may be shorter."""
    buffer = bytearray()
    async for part in parts:
        view = memoryview(part)
        while view:
            taken = view[: size - len(buffer)]
            buffer += taken
            view = view[len(taken) :]
            if len(buffer) == size:
                yield bytes(buffer)
                buffer.clear()
    if buffer:
        yield bytes(buffer)


def _id(name: str) -> str:
    return b64encode(name.encode(), b"-_").decode()


def _name(identifier: str) -> str | None:
    """Return the name whose base64 is *identifier*; None if it is not one of this module's."""
    try:
        name = b64decode(identifier, b"-_", validate=True).decode("ascii")
    except ValueError:
        return None
    return name if is_object_name(name) else None
