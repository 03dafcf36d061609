"""The producer's way onto the stream: publishes that count only once JetStream has confirmed them.

A gateway keeps a :class:`Publisher`; a program that ends with the last message calls :func:`submit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from structlog.typing import FilteringBoundLogger

from .. import __version__
from ..events import BrokerFailure, ConfigDrift, Connected, Disconnected, Event
from ..nats.connection import (
    AnswerTimeoutError,
    Connection,
    ConnectionClosedError,
    NoRespondersError,
    connect_options,
    connected,
)
from ..nats.jetstream import JetStream
from ..nats.objects import one_part
from ..nats.topology import as_named
from ..nats.wire import ApiError, ErrorCode, StreamState
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from .claims import Claim, Claims, open_claims
from .large_bodies import LargeBodies, hashed
from .message import Message
from .publish import MessageTooLargeError, NotStoredError, UnconfirmedError, no_stream, publish, unconfirmed
from .queues import FindStream, by_subject, settings_of
from .stalls import Stalls

_WATCH_INTERVAL = 0.5
"""Seconds between two checks of the connection."""
_MESSAGE_HEADER = 512
"""Bytes of a message's header, which max_payload includes: a message id of 65 and a stream's name of at most 255."""
_MAX_UNCONFIRMED = 256
"""Messages of :func:`submit` not yet confirmed: enough to hide the round trip. More was measured to be no faster."""
_MAX_UNCONFIRMED_BYTES = 16 * 2**20
"""Bytes of these messages."""
_REOPEN = 600.0
"""Seconds without claims after JetStream refused them: for a limit, or without permission. NATS does not answer where
there is no permission, so each try delays calls by five seconds."""
_CLAIM_TRIES = 20
"""Tries to reach the stream of claims: one with replicas has no leader at first."""
_CLAIM_WAIT = 0.1
"""Seconds between two of these tries."""
_MOST_QUEUES = 1_000
"""Queues whose stream and claims are remembered."""
_PASSING = {ErrorCode.CLUSTER_NOT_AVAILABLE, ErrorCode.STREAM_OFFLINE}
"""Errors of a cluster that elects a leader."""
_COMPARING = "comparing requests with the same call id"


class CallIdReusedError(Exception):
    """The call id stands for another request of the same function."""

    def __init__(self, message: Message) -> None:
        super().__init__(
            f"the call id {message.call_id} was used for another request to {message.label}, with another method, path,"
            " query or body: use a new call id, or send the same request"
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of a publish."""

    started: str
    """The X-Start-Time of the call, which for a repeat is the first one's."""
    repeated: bool
    """Whether the stream had the call before."""


class QueueWriter:
    """Publishes calls to the queue's stream over one connection, under a claim of each call id that a caller gave."""

    def __init__(self, connection: Connection, settings: Settings, emit: Emit, find: FindStream = as_named) -> None:
        self._connection, self._settings, self._emit, self._find = connection, settings, emit, find
        self._jetstream = JetStream(connection)
        self._bodies = LargeBodies(self._jetstream, settings, emit, find)
        self._stream = settings.nats_stream
        """The name of the stream at the server, once the claims are open."""
        self._claims: Claims | None = None
        self._opening = asyncio.Lock()
        self._open_again = float("-inf")
        """The loop's time from which claims are opened again, after JetStream refused them."""

    async def publish(self, message: Message) -> Stored:
        """Store *message*, unless the stream has it already.

        Raises:
            MessageTooLargeError: the message cannot be stored.
            CallIdReusedError: another request to the function has the same call id.
            BrokerUnavailableError: as for :func:`publish`.
        """
        if message.request.Body and len(message.request.Body) > self._connection.client.max_payload:
            return await self.publish_large(message, one_part(message.request.Body))
        payload = message.payload()
        if len(payload) + _MESSAGE_HEADER <= self._connection.client.max_payload:
            return await self._store(message, payload, message.digest())
        return await self.publish_large(message, one_part(message.request.Body))

    async def publish_large(self, message: Message, parts: AsyncIterable[bytes]) -> Stored:
        """Store the body, which is *parts*, as an object, and the message with a reference to it.

        The object is deleted again unless a message may refer to it. Raises what :meth:`publish` raises, and what
        *parts* raises.
        """
        digest = message.digest_without_body()
        body = await self._bodies.put(hashed(parts, digest))
        message.request.Body, message.request.BodyObject = b"", body
        payload = message.payload()
        try:
            stored = await self._store(message, payload, digest.hexdigest())
        except (CallIdReusedError, MessageTooLargeError, NotStoredError):
            self._bodies.delete_soon(body)
            raise
        if stored.repeated:
            self._bodies.delete_soon(body)
        return stored

    async def _store(self, message: Message, payload: bytes, digest: str) -> Stored:
        if (size := len(payload) + _MESSAGE_HEADER) > (limit := self._connection.client.max_payload):
            # The server would close the connection.
            raise MessageTooLargeError(f"as a message it takes {size} bytes, and NATS's max_payload is {limit}")
        wanted = Claim(digest, message.started)
        try:
            claim = await self._claim(message, wanted)
            if claim.digest != wanted.digest:
                raise CallIdReusedError(message)
            repeated = await publish(self._connection, self._stream, message, payload, digest)
        except BrokerUnavailableError:
            self._claims = None  # a stream may be missing, or have another name now
            raise
        return Stored(claim.started if repeated else message.started, repeated)

    async def count(self, *, by_subject: bool) -> StreamState:
        """Return the number of messages in the stream, and if so wanted on each of the queue's subjects.

        Errors are those of :class:`JetStream`.
        """
        with suppress(ApiError, MisconfiguredError):  # of the claims; the stream's name may be known even so
            await self._open()
        if by_subject:
            return (await self._jetstream.stream_with_subjects(self._stream, f"{self._settings.queue_name}.>")).state
        return (await self._jetstream.stream(self._stream)).state

    async def _claim(self, message: Message, wanted: Claim) -> Claim:
        """Return the claim that counts for the call: *wanted* also where JetStream refuses to store claims."""
        try:
            for _ in range(_CLAIM_TRIES):
                if self._claims is None:
                    await self._open()
                if self._claims is None or not message.named:
                    return wanted  # no stream, or claims are refused, or the call id is unique
                try:
                    return await self._claims.claim(message.key(), wanted)
                except NoRespondersError:  # the stream of claims was deleted, or was created just now
                    self._claims = None
                    await asyncio.sleep(_CLAIM_WAIT)
            raise BrokerUnavailableError(f"the stream {self._stream}-call-ids does not answer")
        except NoRespondersError:
            raise no_stream(self._stream, message) from None
        except AnswerTimeoutError as error:
            if "permissions violation" not in self._connection.failure.lower():
                raise unconfirmed(self._connection, self._stream, error) from None
            self._give_up_claims(self._connection.failure)
        except (ApiError, MisconfiguredError) as error:
            if isinstance(error, ApiError) and error.err_code in _PASSING:
                raise BrokerUnavailableError(f"JetStream: {error.description}") from None
            self._give_up_claims(str(error))
        return wanted

    async def _open(self) -> None:
        """Find the queue's stream by its name at the server, and its claims."""
        async with self._opening:
            if self._claims is None and asyncio.get_running_loop().time() >= self._open_again:
                found = await self._find(self._jetstream, self._settings, self._emit)
                self._stream = found.nats_stream
                self._claims = await open_claims(self._jetstream, found)

    def _give_up_claims(self, reason: str) -> None:
        self._claims, self._open_again = None, asyncio.get_running_loop().time() + _REOPEN
        self._emit(BrokerFailure(_COMPARING, reason))


async def submit(
    settings: Settings, messages: Iterator[Message], on_stored: Callable[[Message, bool], None], emit: Emit
) -> None:
    """Publish all *messages*, at least one, taken from the iterator as there is room, until one fails.

    Call *on_stored* with each confirmed message, and with whether the stream had it already. Errors are those of
    :meth:`QueueWriter.publish` and of :func:`worker.nats.connection.connected`.
    """
    async with connected(settings, f"queue-worker-submit {__version__}") as connection:
        writer = QueueWriter(connection, settings, emit)

        async def publish_each(messages: Iterable[Message]) -> None:
            for message in messages:
                on_stored(message, (await writer.publish(message)).repeated)

        first = next(messages)
        size = len(first.payload()) if len(first.request.Body) <= _MAX_UNCONFIRMED_BYTES else _MAX_UNCONFIRMED_BYTES
        await publish_each([first])  # an error of one message is mostly an error of all
        at_once = max(1, min(_MAX_UNCONFIRMED, _MAX_UNCONFIRMED_BYTES // size))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(publish_each(messages))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


class Publisher:
    """The producer's connection to NATS, replaced when its client closes itself."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self._settings, self._log = settings, log
        self._options = connect_options(settings, name=f"queue-worker-gateway {__version__}")
        self._connect()

    @property
    def connected(self) -> bool:
        """True while a message can be published."""
        return self._connection.up

    @property
    def answering(self) -> bool:
        """True while connected to a server that answers."""
        return self._connection.up and not self._stalls.server_silent

    def max_body_bytes(self) -> int:
        """Return the size of the largest body that fits a message: base64 makes four bytes of three.

        Raises:
            BrokerUnavailableError: there is no connection, and so no limit.
        """
        return int(self._require_connection().client.max_payload) * 3 // 4

    def check(self, queue: str) -> None:
        """Raise BrokerUnavailableError if nothing can be stored in the queue now."""
        self._require_connection()
        self._stalls.check(queue)

    async def publish(self, message: Message, large: AsyncIterable[bytes] | None = None) -> Stored:
        """Store *message*, as :meth:`QueueWriter.publish` does, over the current connection.

        *large* is its body, where that is larger than :meth:`max_body_bytes`.
        """
        queue = message.request.QueueName
        self.check(queue)
        writer = self._writer(queue)
        try:
            return await (writer.publish_large(message, large) if large else writer.publish(message))
        except UnconfirmedError:
            self._stalls.begin(queue, partial(writer.count, by_subject=False))
            raise

    async def count(self, queue: str, *, by_subject: bool) -> StreamState:
        """Count the messages of a queue, as :meth:`QueueWriter.count` does."""
        self.check(queue)
        return await self._writer(queue).count(by_subject=by_subject)

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            worker.ports.MisconfiguredError: the server refuses the credentials.
        """
        while True:
            try:
                await self._connection.open()
                while True:
                    await self._connection.watch()
                    await asyncio.sleep(_WATCH_INTERVAL)
            except ConnectionClosedError as error:
                self._log_event(BrokerFailure("", str(error)))
            finally:
                self._stalls.close()
                await self._connection.close()
            self._connect()

    def _connect(self) -> None:
        self._connection = Connection(self._options, self._log_event)
        self._stalls = Stalls(self._connection.round_trip)
        self._writers: dict[str, QueueWriter] = {}

    def _writer(self, queue: str) -> QueueWriter:
        """Return the writer of a queue: the producer's own, or one that a function's annotation names."""
        if (writer := self._writers.get(queue)) is None:
            if len(self._writers) >= _MOST_QUEUES:
                del self._writers[next(iter(self._writers))]
            own = queue == self._settings.queue_name
            settings, find = (self._settings, as_named) if own else (settings_of(self._settings, queue), by_subject)
            writer = self._writers[queue] = QueueWriter(self._connection, settings, self._log_event, find)
        return writer

    def _require_connection(self) -> Connection:
        if not self._connection.up:
            failure = self._connection.failure
            raise BrokerUnavailableError(f"not connected to NATS{f': {failure}' if failure else ''}")
        return self._connection

    def _log_event(self, event: Event) -> None:
        match event:
            case Connected(server, reconnected=False):
                self._log.info("Connected", nats=server)
            case Connected(server):
                self._log.warning("Reconnected", nats=server)
            case Disconnected():
                self._log.warning("Disconnected from NATS; requests get 503 until it is back")
            case BrokerFailure(doing, error):
                self._log.warning("Trouble with NATS; trying again", **({"doing": doing} if doing else {}), error=error)
            case ConfigDrift(text):
                self._log.warning(text)
