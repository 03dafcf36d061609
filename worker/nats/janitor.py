"""Takes away the consumers of functions that have nothing stored.

It is we who do that, never the server: its own threshold deletes a consumer that has a backlog but no worker, and with
it the counts of what is between two attempts. Any worker may; races end well.
"""

from __future__ import annotations

import asyncio

from ..config import Settings
from ..ports import BrokerUnavailableError
from .connection import Connection
from .discovery import SubjectDiscovery
from .layout import FUNCTION, ConsumerSet, consumer_state
from .migration import Migration
from .wire import ApiError, ErrorCode

_AT_ONCE = 8
"""Consumers that are taken away at the same time."""
_AT_A_TIME = 500
"""The same, in one go: looking after the rest waits meanwhile."""


class Janitor:
    """Looks for consumers without work.

    Args:
        connection: to whom to talk.
        settings: with the stream's name as it is at the server.
        functions: knows what is stored, and is told what is gone.
        switch: pauses and deletes consumers.
    """

    def __init__(
        self, connection: Connection, settings: Settings, functions: SubjectDiscovery, switch: Migration
    ) -> None:
        self._connection, self.settings, self._functions, self._switch = connection, settings, functions, switch
        self._idle: dict[str, tuple[str, float | None]] = {}
        """Consumers of functions: the subject, and since when it has nothing stored, as far as we know."""

    def know(self, layout: ConsumerSet) -> None:
        """What consumers there are now."""
        self._idle = {
            each.name: (each.subjects[0], self._idle.get(each.name, ("", None))[1])
            for each in layout.live
            if each.layout == FUNCTION
        }

    async def tidy(self, now: float) -> None:
        """Delete the consumers whose subjects have had nothing stored for the threshold.

        Where others wait for a consumer, and the stream may have no more, at once.
        """
        due = []
        for name, (subject, since) in self._idle.items():
            if self._functions.stored(subject):
                self._idle[name] = subject, None
            elif since is None:
                self._idle[name] = subject, now
            elif self._functions.crowded or now - since >= self.settings.consumer_inactive_threshold:
                due.append((name, subject))
        room = asyncio.Semaphore(_AT_ONCE)

        async def see_to(name: str, subject: str) -> None:
            async with room:
                await self._see_to(name, subject, now)

        await asyncio.gather(*(see_to(*each) for each in due[:_AT_A_TIME]))

    async def _see_to(self, name: str, subject: str, now: float) -> None:
        try:
            gone = await self._take_away(name)
        except ApiError as error:
            gone = error.err_code == ErrorCode.CONSUMER_NOT_FOUND
            if not gone:
                self._connection.report_failure(f"deleting the consumer {name}, which is idle", error)
        except BrokerUnavailableError as error:
            self._connection.report_failure(f"deleting the consumer {name}, which is idle", error)
            return
        if gone:
            self._idle.pop(name, None)
            self._functions.lost(subject)
        else:  # others know more
            self._idle[name] = subject, now

    async def _take_away(self, name: str) -> bool:
        """Delete a consumer that has nothing to do. It stands still meanwhile, so that nobody is handed something."""
        ask = f"CONSUMER.INFO.{self.settings.nats_stream}.{name}"
        if not _has_nothing(await self._connection.ask(ask)):
            return False
        paused = await self._switch.pause(name)
        if not _has_nothing(await self._connection.ask(ask)):
            if paused:
                await self._switch.resume(name)
            return False
        await self._switch.delete(name)
        return True


def _has_nothing(info: dict[str, object]) -> bool:
    found = consumer_state(info)
    return found.layout == FUNCTION and not found.num_ack_pending and not found.num_pending
