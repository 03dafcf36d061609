"""The worker as a tree of tasks. Inner blocks end first: intake, then the jobs, then the tasks that jobs need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import trio

from .events import BacklogRead, DrainEnded
from .intake import Intake
from .ports import BrokerUnavailableError, Emit, Queue
from .services import Services

_BACKLOG_EVERY = 2.0
"""Seconds: a few times for each scrape of a busy Prometheus, and almost no work for the server."""


async def run(services: Services, stops: AsyncIterator[object]) -> None:
    """Work until a drain has ended. *stops* yields when the worker is asked to stop, and again when it is to hurry.

    Raises:
        worker.ports.MisconfiguredError: the stream or consumer at the broker cannot work.
    """
    async with trio.open_nursery() as background:
        background.start_soon(services.drain.watch, stops)
        background.start_soon(services.leases.run)
        background.start_soon(services.timers.run)
        async with trio.open_nursery() as jobs:
            intake = Intake(services, jobs)
            with services.drain.intake:
                await intake.run(await services.queue.consume())
            await intake.stop()
            # Leaving this block waits for every job to settle.
        # Callbacks may have been stored after the drain's time; that is part of this time.
        ended = min(trio.current_time(), services.drain.expired_at)
        with trio.move_on_at(ended + services.config.settle_within) as patience:
            await services.queue.wait_settled()
        seconds = trio.current_time() - services.drain.started_at
        services.emit(DrainEnded(seconds, unconfirmed=patience.cancelled_caught))
        background.cancel_scope.cancel()


async def watch_backlog(queue: Queue, emit: Emit) -> None:
    """Emit the stream's backlog every few seconds until cancelled. The adapter reports why it cannot be read."""
    while True:
        with suppress(BrokerUnavailableError):
            emit(BacklogRead(await queue.backlog()))
        await trio.sleep(_BACKLOG_EVERY)
