"""How much is waiting, read from the stream every few seconds."""

from __future__ import annotations

from contextlib import suppress

import trio

from .events import BacklogRead
from .ports import BrokerUnavailableError, Emit, Queue

_EVERY = 2.0
"""Seconds: a few times per scrape of an eager Prometheus, and nothing to the server."""


async def watch_backlog(queue: Queue, emit: Emit) -> None:
    """Tell the backlog until cancelled. Where it cannot be read, the last one stands: trouble is told elsewhere."""
    while True:
        with suppress(BrokerUnavailableError):
            emit(BacklogRead(await queue.backlog()))
        await trio.sleep(_EVERY)
