"""The queue's backlog, read from the stream every few seconds."""

from __future__ import annotations

from contextlib import suppress

import trio

from .events import BacklogRead
from .ports import BrokerUnavailableError, Emit, Queue

_EVERY = 2.0
"""Seconds: a few times for each scrape of a busy Prometheus, and almost no work for the server."""


async def watch_backlog(queue: Queue, emit: Emit) -> None:
    """Emit the backlog until cancelled. The adapter reports why it cannot be read."""
    while True:
        with suppress(BrokerUnavailableError):
            emit(BacklogRead(await queue.backlog()))
        await trio.sleep(_EVERY)
