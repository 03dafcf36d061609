"""The publishes of a program that ends with the last of them: many at once, each confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from .. import __version__
from ..config import Settings
from ..nats.connection import Connection, connected
from .message import Message
from .publisher import publish

_MAX_UNCONFIRMED = 256
"""Messages sent and not yet confirmed: enough to hide the round trip. More was measured to be no faster."""
_MAX_UNCONFIRMED_BYTES = 16 * 2**20
"""Bytes of these messages."""

OnStored = Callable[[Message, bool], None]
"""Function that is called with each confirmed message, and with whether the stream had it already."""


async def submit(settings: Settings, messages: Iterator[Message], on_stored: OnStored) -> None:
    """Publish all *messages*, taken from the iterator as there is room, until one fails.

    Raises:
        worker.ports.BrokerUnavailableError: there is no connection, or a message was not confirmed.
        MessageTooLargeError: a message cannot be stored.
        worker.ports.MisconfiguredError: the server refuses the credentials.
    """
    async with connected(settings, f"queue-worker-submit {__version__}") as connection:
        await _publish_all(connection, settings.nats_stream, messages, on_stored)


async def _publish_all(connection: Connection, stream: str, messages: Iterator[Message], on_stored: OnStored) -> None:
    async def publish_next() -> None:
        for message in messages:
            on_stored(message, await publish(connection, stream, message))

    first = next(messages, None)
    if first is None:
        return
    on_stored(first, await publish(connection, stream, first))  # an error of one message is mostly an error of all
    at_once = max(1, min(_MAX_UNCONFIRMED, _MAX_UNCONFIRMED_BYTES // len(first.payload)))
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(publish_next())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
