"""Invocations put on the queue by a program that then ends: many at once, each confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import structlog

from .. import __version__
from ..config import Settings, without_password
from ..ports import BrokerUnavailableError
from .message import Message
from .publisher import Log, Publisher

_CONNECT_TIMEOUT = 5.0
"""Seconds for the first connection: a person waits for it."""
_MAX_UNCONFIRMED = 256
"""Messages sent and not yet confirmed: enough to hide the round trip; more was measured to be no faster."""
_MAX_UNCONFIRMED_BYTES = 16 * 2**20
"""The same for large ones."""


async def submit(settings: Settings, messages: Iterator[Message], stored: Callable[[Message, bool], None]) -> None:
    """Publish all *messages*, and call *stored* with each as it is confirmed, and whether it was there already.

    They are taken from the iterator as there is room. Where one fails, no more are sent.

    Raises:
        BrokerUnavailableError: there is no connection, or one was not confirmed.
        MessageTooLargeError: one does not fit.
        worker.ports.MisconfiguredError: NATS refuses our credentials.
    """
    silent: Log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    publisher = Publisher(settings, name=f"queue-worker-submit {__version__}", log=silent)
    connected = asyncio.Event()
    connection = asyncio.ensure_future(publisher.run(connected.set))
    try:
        await _first(connection, asyncio.ensure_future(connected.wait()))
        if not connected.is_set():
            raise BrokerUnavailableError(_nobody(settings, publisher))
        await _publish_all(publisher, messages, stored)
    finally:
        connection.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connection


async def _first(connection: asyncio.Future[None], connected: asyncio.Future[bool]) -> None:
    """Wait for the first connection, or the time that there is for it."""
    try:
        await asyncio.wait((connection, connected), timeout=_CONNECT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if connection.done():
            connection.result()
    finally:
        connected.cancel()


async def _publish_all(
    publisher: Publisher, messages: Iterator[Message], stored: Callable[[Message, bool], None]
) -> None:
    async def send() -> None:
        for message in messages:
            stored(message, await publisher.publish(message))

    first = next(messages, None)
    if first is None:
        return
    stored(first, await publisher.publish(first))  # what is wrong with one is mostly wrong with all
    at_once = max(1, min(_MAX_UNCONFIRMED, _MAX_UNCONFIRMED_BYTES // len(first.payload)))
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(send())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _nobody(settings: Settings, publisher: Publisher) -> str:
    servers = without_password(",".join(settings.nats_servers))
    why = f" ({publisher.trouble})" if publisher.trouble else ""
    return (
        f"no NATS at {servers} within {_CONNECT_TIMEOUT:g} s{why}:"
        " is it running, and do nats_host and nats_port, or nats_url, say where?"
    )
