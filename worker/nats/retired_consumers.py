"""The retired consumers, and the deletion of the messages that ended through one.

JetStream does not delete them: a message that one consumer has the ack of stays on a work queue while another consumer
covers it (measured, nats-server 2.15.1), and that one would deliver it again. So the worker that ended a message
through a retired consumer deletes it, by its sequence: only what has certainly ended, never a range. Where the worker
dies in between, or never received the announcement of the retirement, the message runs again. A deletion is right
whatever became of the consumer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import trio

from ..model import Delivery
from ..ports import BrokerUnavailableError
from .jetstream import JetStream
from .layout import ConsumerSet
from .pull_messages import consumer_of
from .wire import ApiError, nanoseconds

_ANNOUNCED = 30.0
"""Seconds for which an announced name counts as retired in a worker that looks at the consumers: retiring some dozens
takes a second, and it looks every three or so. A draining worker does not look; there the name counts until it ends."""
_MOST = 20_000
"""Announced names that are remembered, the newest. Another program may announce any number."""
_LOOK = 0.01
"""Seconds between two looks whether all is deleted, at the end of a drain."""
_RETRY = 0.5
"""Seconds before another try to delete a message."""
_AT_ONCE = 64
_EXACT = 10_000
"""Nanoseconds by which two readings of one time may differ."""


class RetiredConsumers:
    """The retired consumers, as far as this worker knows, and the messages that ended through one."""

    def __init__(self) -> None:
        self.names: AbstractSet[str] = frozenset()
        """The names of retired consumers: observed ones, and announced ones."""
        self._observed: frozenset[str] = frozenset()
        self._announced: dict[str, float] = {}
        """The names of consumers that are being retired, and until when they count as retired."""
        self._ended: dict[int, int] = {}
        """The sequences of the messages to delete, and when each was stored (ns)."""
        self._unanswered: set[int] = set()
        """Sequences whose deletion had no answer."""
        self._wake = asyncio.Event()

    def expect(self, names: Iterable[str]) -> None:
        """Note consumers that are about to be retired."""
        for name in names:
            self._announced.pop(name, None)
            self._announced[name] = trio.current_time() + _ANNOUNCED
        while len(self._announced) > _MOST:
            del self._announced[next(iter(self._announced))]
        self.names = self._observed | self._announced.keys()

    def set_consumers(self, consumers: ConsumerSet) -> None:
        """Note which consumers are retired, and end announcements: those that expired, and those of deleted ones."""
        now, retired = trio.current_time(), frozenset(each.name for each in consumers.retired)
        deleted = self._observed - retired  # from now on the name may be that of a new consumer
        self._announced = {
            name: until for name, until in self._announced.items() if now < until and name not in deleted
        }
        self._observed = retired
        self.names = retired | self._announced.keys()

    def settled(self, delivery: Delivery) -> None:
        """Note that a message ended for good, where that was through a retired consumer."""
        if consumer_of(delivery.token) in self.names:
            sequence, stored = delivery.id
            self._ended[sequence] = stored
            self._wake.set()

    def forget(self) -> None:
        """Forget announcements and messages: the stream was replaced, and its sequences identify other messages."""
        self._announced.clear()
        self.names = self._observed
        self._ended.clear()
        self._unanswered.clear()

    async def wait_deleted(self) -> None:
        """Return when no message is left to be deleted."""
        while self._ended:  # noqa: ASYNC110 -- what changes is at the server
            await asyncio.sleep(_LOOK)

    async def run(self, jetstream: JetStream, stream: str) -> None:
        """Delete the messages from a stream until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while some := [*self._ended][:_AT_ONCE]:
                if not all(await asyncio.gather(*(self._delete(jetstream, stream, each) for each in some))):
                    await asyncio.sleep(_RETRY)

    async def _delete(self, jetstream: JetStream, stream: str, sequence: int) -> bool:
        """Delete a message, and return whether it is gone."""
        try:
            # After a silence the stream may be another one, which has the sequence of the old one's message.
            found = await jetstream.message(stream, sequence) if sequence in self._unanswered else None
            if found is None or abs(nanoseconds(found.time) - self._ended.get(sequence, 0)) < _EXACT:
                await jetstream.delete_message(stream, sequence)
        except BrokerUnavailableError:
            self._unanswered.add(sequence)
            return False
        except ApiError as error:  # there is no such message any more; or the stream permits no deletion
            if "not permitted" in error.description:
                jetstream.connection.report_failure("deleting a message that has ended, so that it runs again", error)
        self._unanswered.discard(sequence)
        self._ended.pop(sequence, None)
        return True
