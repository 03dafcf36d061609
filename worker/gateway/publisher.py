"""The producer's way onto the stream: publishes that count only once JetStream has confirmed them.

A gateway keeps a :class:`Publisher`; a program that ends with the last message calls :func:`submit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from structlog.typing import FilteringBoundLogger

from .. import __version__
from ..config import Settings
from ..events import BrokerFailure, Connected, Disconnected, Event
from ..nats.connection import (
    AnswerTimeoutError,
    Connection,
    ConnectionClosedError,
    NoRespondersError,
    connect_options,
    connected,
)
from ..nats.jetstream import JetStream
from ..nats.wire import ApiError, ErrorCode
from ..ports import BrokerUnavailableError
from .message import Message

_WATCH_INTERVAL = 0.5
"""Seconds between two checks of the connection."""
_FRAME = len("NATS/1.0\r\n\r\n")
_MAX_UNCONFIRMED = 256
"""Messages of :func:`submit` not yet confirmed: enough to hide the round trip. More was measured to be no faster."""
_MAX_UNCONFIRMED_BYTES = 16 * 2**20
"""Bytes of these messages."""


class MessageTooLargeError(Exception):
    """The message, headers and base64 included, exceeds a limit of the server or of the stream."""


async def publish(connection: Connection, stream: str, message: Message) -> bool:
    """Store *message* on *stream*; return whether the stream had it already, by its call id.

    Raises:
        MessageTooLargeError: the message cannot be stored.
        BrokerUnavailableError: the message is not confirmed. Published again with the same call id, it is stored once.
    """
    payload = message.payload()
    headers = {"Nats-Msg-Id": message.call_id, "Nats-Expected-Stream": stream}
    size = len(payload) + _FRAME + sum(len(name) + len(value) + 4 for name, value in headers.items())
    if size > (limit := connection.client.max_payload):  # the server would close the connection
        raise MessageTooLargeError(f"as a message it takes {size} bytes, and NATS's max_payload is {limit}")
    try:
        return (await JetStream(connection).publish(message.subject, payload, headers)).duplicate
    except NoRespondersError:
        raise BrokerUnavailableError(
            f"no stream takes the subject {message.subject}: start a worker, which makes the stream {stream},"
            " or see that JetStream runs and the stream's subjects cover the queue's"
        ) from None
    except AnswerTimeoutError as error:
        detail = f" ({connection.failure})" if connection.failure else ""
        raise BrokerUnavailableError(f"stream {stream} did not confirm within {error.seconds:g} s{detail}") from None
    except ApiError as error:
        if error.err_code == ErrorCode.STREAM_MESSAGE_EXCEEDS_MAXIMUM:
            text = f"stream {stream} has a limit of its own for a message: {error.description}"
            raise MessageTooLargeError(text) from None
        if error.err_code == ErrorCode.STREAM_NOT_MATCH:
            text = f"another stream than {stream} takes the subject {message.subject}: check nats_stream and queue_name"
        else:
            text = f"stream {stream} refuses: {error.description or 'no reason given'}"
        raise BrokerUnavailableError(text) from None


async def submit(settings: Settings, messages: Iterator[Message], on_stored: Callable[[Message, bool], None]) -> None:
    """Publish all *messages*, at least one, taken from the iterator as there is room, until one fails.

    Call *on_stored* with each confirmed message, and with whether the stream had it already. Errors are those of
    :func:`publish` and of :func:`worker.nats.connection.connected`.
    """
    async with connected(settings, f"queue-worker-submit {__version__}") as connection:

        async def publish_each(messages: Iterable[Message]) -> None:
            for message in messages:
                on_stored(message, await publish(connection, settings.nats_stream, message))

        first = next(messages)
        await publish_each([first])  # an error of one message is mostly an error of all
        at_once = max(1, min(_MAX_UNCONFIRMED, _MAX_UNCONFIRMED_BYTES // len(first.payload())))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(publish_each(messages))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


class Publisher:
    """The producer's connection to NATS, replaced when its client closes itself."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self._stream, self._log = settings.nats_stream, log
        self._options = connect_options(settings, name=f"queue-worker-gateway {__version__}")
        self._connection = Connection(self._options, self._log_event)

    @property
    def connected(self) -> bool:
        """True while a message can be published."""
        return self._connection.up

    def max_body_bytes(self) -> int:
        """Return the size of the largest body that fits a message: base64 makes four bytes of three.

        Raises:
            BrokerUnavailableError: there is no connection, and so no limit.
        """
        return int(self._require_connection().client.max_payload) * 3 // 4

    async def publish(self, message: Message) -> bool:
        """Store *message*, as :func:`publish` does, on the current connection."""
        return await publish(self._require_connection(), self._stream, message)

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
                await self._connection.close()
            self._connection = Connection(self._options, self._log_event)

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
            case BrokerFailure(error=error):
                self._log.warning("Trouble with NATS; trying again", error=error)
