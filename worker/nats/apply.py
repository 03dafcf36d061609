"""Applies what the reconciler decided, through JetStream.

Every change can be made twice. Before each deletion the consumer is looked at again: other workers apply theirs, too,
and since the observation another consumer may have been created under the name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import trio

from ..ports import BrokerUnavailableError
from .jetstream import JetStream
from .layout import (
    FUNCTION,
    NO_FILTER,
    RETIRED,
    UNMARKED,
    ConsumerState,
    consumer_state,
    delivered_since,
    marked,
    overlap,
    retirement,
)
from .reconcile import Change, DeleteRefused, DeleteRetired, Idle, Retire, Unfilter
from .wire import ApiError, ConsumerInfo, ErrorCode, nanoseconds, parse_time

T = TypeVar("T")
R = TypeVar("R")

PAUSE = 10.0
"""Seconds that a consumer is paused at most, while it is being retired or deleted."""
_RESUMED = 0.2
"""Seconds until a pause ends that is to end: enough for three servers to agree on it first."""
_TRUSTED = 6.0
"""Seconds after the beginning of a pause in which an info of the consumer is trusted."""
_FLUSHED = 0.3
"""Seconds after which nats-server has written what a consumer had delivered: it does so every 100 ms."""
_TAKEN_OFF = 0.5
"""Seconds that workers have to delete what they have just ended through a retired consumer, before that consumer is
deleted and other consumers deliver what is still stored."""
_COUNTED = 1_000
"""Deliveries since the last info that are counted one by one."""
_AT_ONCE = 16
"""Changes that are made at the same time."""


class Applier:
    """Changes the consumers of one stream. *announce* notifies all workers of a retirement."""

    def __init__(
        self, jetstream: JetStream, stream: str, queue: str, announce: Callable[[Retire], Awaitable[None]]
    ) -> None:
        self._jetstream, self._stream, self._queue, self._announce = jetstream, stream, queue, announce

    async def apply(self, change: Change) -> None:
        """Apply a change, to several consumers at the same time.

        Raises the errors of its requests.
        """
        match change:
            case Retire(names, layout):
                await self._announce(change)
                await _for_each(names, lambda name: self._retire(name, layout))
            case DeleteRetired(consumers):
                await asyncio.sleep(_TAKEN_OFF)
                await _for_each(consumers, self._delete_retired)
            case DeleteRefused(names, others):
                await _for_each(names, lambda name: self._delete_refused(name, others))
            case Unfilter(name):
                info = await self._jetstream.consumer(self._stream, name)
                if consumer_state(info).layout != RETIRED:  # another worker may have retired it since
                    await self._jetstream.update_consumer(self._stream, info, **NO_FILTER)

    async def delete_idle(self, idle: Iterable[Idle]) -> list[str]:
        """Delete idle consumers, and return the subjects of those that are gone. Failures are reported."""
        return [subject for subject in await _for_each(idle, self._delete_idle) if subject]

    async def _retire(self, name: str, layout: str) -> None:
        info = await self._jetstream.consumer(self._stream, name)
        if consumer_state(info).layout == RETIRED or not self._jetstream.connection.can_pause:
            await self._retire_unpaused(info, layout)
            return
        began = trio.current_time()
        await self._pause(name, PAUSE)
        await asyncio.sleep(_FLUSHED)
        info = await self._jetstream.consumer(self._stream, name)
        # Only where the pause has lasted until now is the sequence in the info the last one that was delivered.
        paused = info.paused and trio.current_time() - began < _TRUSTED
        if paused and consumer_state(info).layout != RETIRED:  # another worker may have been faster
            changes = retirement(self._queue, info, layout, nanoseconds(info.ts))
            await self._jetstream.update_consumer(self._stream, info, **changes)
        await self._resume(name)

    async def _retire_unpaused(self, info: ConsumerInfo, layout: str) -> None:
        """Retire a consumer that delivers until it is updated; until its mark is known, it holds all messages."""
        name = info.name
        if consumer_state(info).layout != RETIRED:
            changes = retirement(self._queue, info, layout, nanoseconds(info.ts), paused=False)
            await self._jetstream.update_consumer(self._stream, info, **changes)
            info = await self._jetstream.consumer(self._stream, name)
        if consumer_state(info).mark == UNMARKED:
            await self._jetstream.update_consumer(self._stream, info, **marked(info, await self._mark(info)))

    async def _mark(self, info: ConsumerInfo) -> int:
        """Return a sequence that is not below the last one that a consumer has delivered, and hardly above it.

        The server's own may be far above: a consumer whose filter matches nothing skips what the stream stores. So this
        counts the stored messages from the last one before the update: as many as there were deliveries since.
        """
        before, deliveries = delivered_since(info)
        if deliveries > _COUNTED:
            return info.delivered.stream_seq
        last = before
        for pattern in consumer_state(info).subjects or (">",):
            sequence = before
            for _ in range(deliveries):
                if (found := await self._jetstream.next_message(self._stream, sequence + 1, pattern)) is None:
                    break
                sequence = found.seq
            last = max(last, sequence)
        return min(last, info.delivered.stream_seq)

    async def _delete_retired(self, observed: ConsumerState) -> None:
        if info := await self._jetstream.find_consumer(self._stream, observed.name):
            now = consumer_state(info)
            if (now.layout, now.retired_at, now.num_ack_pending) == (RETIRED, observed.retired_at, 0):
                await self._jetstream.delete_consumer(self._stream, observed.name)

    async def _delete_refused(self, name: str, others: tuple[tuple[str, ...], ...]) -> None:
        # The server obeys the deletion of a consumer without a leader, and does not always answer it.
        with suppress(ApiError, BrokerUnavailableError):
            info = await self._jetstream.consumer(self._stream, name)
            if any(overlap(info.config.filters, other) for other in others):
                await self._jetstream.delete_consumer(self._stream, name)

    async def _delete_idle(self, idle: Idle) -> str | None:
        """Delete a consumer while it is paused, so that it delivers nothing between the last look and its deletion."""
        name = idle.name
        try:
            if await self._is_idle(name):
                paused = await self._pause(name, PAUSE)
                if await self._is_idle(name):
                    await self._jetstream.delete_consumer(self._stream, name)
                    return idle.subject
                if paused:
                    await self._resume(name)
        except (ApiError, BrokerUnavailableError) as error:
            if isinstance(error, ApiError) and error.err_code == ErrorCode.CONSUMER_NOT_FOUND:
                return idle.subject
            self._jetstream.connection.report_failure(f"deleting the consumer {name}, which is idle", error)
        return None

    async def _is_idle(self, name: str) -> bool:
        found = consumer_state(await self._jetstream.consumer(self._stream, name))
        return found.layout == FUNCTION and not found.num_ack_pending and not found.num_pending

    async def _pause(self, name: str, seconds: float) -> bool:
        """Pause a consumer by the server's clock, and return whether it is paused; not so before nats-server 2.11."""
        if not self._jetstream.connection.can_pause:
            return False
        info = await self._jetstream.consumer(self._stream, name)
        until = parse_time(info.ts) + timedelta(seconds=seconds)
        return await self._jetstream.pause_consumer(self._stream, name, until.isoformat().replace("+00:00", "Z"))

    async def _resume(self, name: str) -> None:
        """Let a consumer go on soon.

        A pause that ends wakes the open pull requests. One that is taken back does not: they wait for the next message,
        or for another request (measured, nats-server 2.15.1).
        """
        await self._pause(name, _RESUMED)


async def _for_each(items: Iterable[T], act: Callable[[T], Awaitable[R]]) -> list[R]:
    """Act on items, on a few at the same time; return the results, or raise the first error once all have ended."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def act_within(item: T) -> R:
        async with room:
            return await act(item)

    tasks = [asyncio.ensure_future(act_within(item)) for item in items]
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]
