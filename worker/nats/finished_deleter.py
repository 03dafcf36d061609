"""Takes off the stream what is over through a retired consumer.

JetStream does not do that: a message that one consumer has acknowledged stays on a work queue while another one covers
it (measured, nats-server 2.15.1), and that one would hand it out once more. So whoever ended a message through
a retired consumer deletes it, by its sequence: exactly what is known to be over, never a range. If he dies in between,
or never heard that the consumer was being retired, the message runs once more.

Who is about to retire consumers announces their names first: what is ended through them is deleted from then on, also
by workers that have not looked at the consumers since. To delete what is over is right whatever became of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet

import nats.errors
import trio
from nats.aio.msg import Msg

from ..config import Settings
from ..model import Delivery
from ..ports import BrokerUnavailableError
from . import nats_internals
from .connection import Connection
from .migration import nanoseconds
from .wire import ApiError, consumer_of

_ANNOUNCED = 30.0
"""Seconds for which an announced name counts as retired, where we look at the consumers: retiring some dozens takes a
second, and a look every three or so. Where we do not, since we drain, it counts until we end."""
_NAMES = 1_000
"""Names in one announcement: of a tenth of the megabyte that a message may have."""
_LOOK = 0.01
"""Seconds between two looks whether all is off, at the end of a drain."""
_AGAIN = 0.5
"""Seconds before another try to delete a message."""
_AT_ONCE = 64
_EXACT = 10_000
"""Nanoseconds by which two readings of one time may differ."""


class RetiredConsumers:
    """The names of retired consumers, and the messages that ended through one and have to be deleted."""

    def __init__(self) -> None:
        self.names: AbstractSet[str] = frozenset()
        self.ended: dict[int, int] = {}
        """The sequences of these messages, and when each was stored (ns)."""
        self.wake = asyncio.Event()

    def settled(self, delivery: Delivery, reply: str) -> None:
        """Note that a message ended for good, through the consumer that its reply subject names."""
        if consumer_of(reply) in self.names:
            sequence, stored = delivery.id
            self.ended[sequence] = stored
            self.wake.set()


class FinishedDeleter:
    """Of one stream.

    Args:
        connection: to whom to talk.
        settings: with the stream's name as it is at the server.
        consumers: has the messages that ended.
    """

    def __init__(self, connection: Connection, settings: Settings, consumers: RetiredConsumers) -> None:
        self._settings = settings
        self._connection, self._consumers = connection, consumers
        self._retired: Collection[str] = ()
        self._announced: dict[str, float] = {}
        """The names of consumers that are being retired, and until when they count as retired."""
        self._unanswered: set[int] = set()
        """Of these, those that we have asked for in vain."""
        self._heard = False

    async def done(self) -> None:
        """Return when nothing is left to be taken off."""
        while self._consumers.ended:  # noqa: ASYNC110 -- what changes is at the server
            await asyncio.sleep(_LOOK)

    async def listen(self) -> None:
        """Hear of retirements."""
        if not self._heard:
            self._heard = True
            await nats_internals.listen(self._connection.client, self._subject, self._on_announced)

    async def announce(self, names: Iterable[str]) -> None:
        """Consumers are about to be retired.

        Raises:
            worker.ports.BrokerUnavailableError: it cannot be told now.
        """
        names = [*names]
        self._expect(names)
        for at in range(0, len(names), _NAMES):
            told = "\n".join(names[at : at + _NAMES]).encode()
            try:
                await self._connection.client.publish(self._subject, told)
            except (nats.errors.Error, OSError) as error:
                raise BrokerUnavailableError(f"telling the other workers: {error}") from None
            # It is long there when the first has retired.

    def know(self, retired: Collection[str]) -> None:
        """The names of the retired consumers."""
        now, gone = trio.current_time(), {*self._retired} - {*retired}  # one of that name may be made anew
        self._announced = {name: until for name, until in self._announced.items() if now < until and name not in gone}
        self._retired = retired
        self._watch()

    def forget(self) -> None:
        """The stream is another one."""
        self._announced.clear()
        self._watch()
        self._consumers.ended.clear()
        self._unanswered.clear()

    async def run(self) -> None:
        """Delete, for ever."""
        while True:
            await self._consumers.wake.wait()
            self._consumers.wake.clear()
            while some := [*self._consumers.ended][:_AT_ONCE]:
                deleted = await asyncio.gather(*map(self._delete, some))
                for sequence, gone in zip(some, deleted, strict=True):
                    if gone:
                        self._consumers.ended.pop(sequence, None)
                if not all(deleted):
                    await asyncio.sleep(_AGAIN)

    async def _delete(self, sequence: int) -> bool:
        stream = self._settings.nats_stream
        try:
            if sequence in self._unanswered:  # meanwhile the stream may have been made anew, with its numbers
                found = await self._connection.ask(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
                mine = abs(nanoseconds(found["message"]["time"]) - self._consumers.ended.get(sequence, 0)) < _EXACT
            else:
                mine = True
            if mine:
                await self._connection.ask(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except BrokerUnavailableError:
            self._unanswered.add(sequence)
            return False
        except ApiError:
            pass  # it is not there any more
        self._unanswered.discard(sequence)
        return True

    @property
    def _subject(self) -> str:
        return f"queue-worker.{self._settings.nats_stream}.retiring"

    def _on_announced(self, message: Msg) -> None:
        self._expect(message.data.decode(errors="replace").split("\n"))

    def _expect(self, names: Iterable[str]) -> None:
        self._announced |= dict.fromkeys(names, trio.current_time() + _ANNOUNCED)
        self._watch()

    def _watch(self) -> None:
        self._consumers.names = {*self._announced, *self._retired}
