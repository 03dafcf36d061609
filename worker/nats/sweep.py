"""Takes off the stream what is over through a retired consumer.

JetStream does not do that: a message that one consumer has acknowledged stays on a work queue while another one covers
it (measured, nats-server 2.15.1), and that one would hand it out once more. So whoever ended a message through
a retired consumer deletes it, by its sequence: exactly what is known to be over, never a range. If he dies in between,
or never heard that the consumer was being retired, the message runs once more.

To know what was ended just before the retirement was heard of, it is announced: from then on what is ended is noted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

import trio
from nats.aio.msg import Msg

from ..config import Settings
from ..model import Delivery
from ..ports import NotStored
from . import quirks
from .connection import ApiError, Connection
from .outbox import Outbox
from .wire import consumer_of

_NOTED = 30.0
"""Seconds for which what is ended is noted after a retirement was announced: retiring some dozens takes a second."""
_LOOK = 0.01
"""Seconds between two looks whether all is off, at the end of a drain."""
_AGAIN = 0.5
"""Seconds before another try to delete a message."""
_AT_ONCE = 64


class Sweep:
    """Of one stream.

    Args:
        connection: to whom to talk.
        settings: with the stream's name as it is at the server.
        outbox: tells what has ended.
    """

    def __init__(self, connection: Connection, settings: Settings, outbox: Outbox) -> None:
        self.settings = settings
        self._connection, self._outbox = connection, outbox
        self._retired: Collection[str] = ()
        self._noted: deque[tuple[int, str]] = deque()
        """What was ended since the announcement: its sequence, and through which consumer."""
        self._until = -1.0
        self._over: dict[int, None] = {}
        self._wake = asyncio.Event()
        self._heard = False

    @property
    def noted(self) -> bool:
        """Whether something has ended of which it is not known whether it must be taken off."""
        return bool(self._noted)

    async def done(self) -> None:
        """Return when nothing is left to be taken off."""
        while self._over:  # noqa: ASYNC110 -- what changes is at the server
            await asyncio.sleep(_LOOK)

    async def listen(self) -> None:
        """Hear of retirements."""
        if not self._heard:
            self._heard = True
            await quirks.listen(self._connection.client, self._subject, self._on_announced)

    async def announce(self) -> None:
        """Consumers are about to be retired."""
        self._note()
        await self._connection.client.publish(self._subject, b"")  # which is long there when the first has retired

    def know(self, retired: Collection[str]) -> None:
        """The names of the retired consumers."""
        self._retired = retired
        self._over |= {sequence: None for sequence, consumer in self._noted if consumer in retired}
        self._noted = deque(each for each in self._noted if each[1] not in retired)
        self._watch()
        if self._over:
            self._wake.set()

    def forget(self) -> None:
        """The stream is another one."""
        self._noted.clear()
        self._over.clear()

    async def run(self) -> None:
        """Delete, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while some := [*self._over][:_AT_ONCE]:
                deleted = await asyncio.gather(*map(self._delete, some))
                for sequence, gone in zip(some, deleted, strict=True):
                    if gone:
                        self._over.pop(sequence, None)
                if not all(deleted):
                    await asyncio.sleep(_AGAIN)

    async def _delete(self, sequence: int) -> bool:
        try:
            body = {"seq": sequence, "no_erase": True}
            await self._connection.ask(f"STREAM.MSG.DELETE.{self.settings.nats_stream}", body)
        except NotStored:
            return False
        except ApiError:
            return True  # it is not there any more
        return True

    @property
    def _subject(self) -> str:
        return f"queue-worker.{self.settings.nats_stream}.retiring"

    def _on_announced(self, _: Msg) -> None:
        self._note()

    def _note(self) -> None:
        self._until = trio.current_time() + _NOTED
        self._watch()

    def _watch(self) -> None:
        noting = trio.current_time() < self._until
        if not noting:
            self._noted.clear()
        self._outbox.over = self._on_over if noting or self._retired else None

    def _on_over(self, delivery: Delivery) -> None:
        consumer = consumer_of(delivery.token.partition(" ")[2])
        if consumer in self._retired:
            self._over[delivery.id[0]] = None
            self._wake.set()
        elif trio.current_time() < self._until:
            self._noted.append((delivery.id[0], consumer))
