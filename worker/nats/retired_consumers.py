"""Deletes the messages that ended through a retired consumer.

JetStream does not: a message that one consumer has the ack of stays on a work queue while another consumer covers it
(measured, nats-server 2.15.1), and that one would deliver it again. So the worker that ended a message through
a retired consumer deletes it, by its sequence: only what has certainly ended, never a range. Where the worker dies in
between, or never received the announcement of the retirement, the message runs again. A deletion is right whatever
became of the consumer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet

from ..model import Delivery
from ..ports import BrokerUnavailableError
from .jetstream import JetStream
from .wire import ApiError, consumer_of, nanoseconds

_LOOK = 0.01
"""Seconds between two looks whether all is deleted, at the end of a drain."""
_RETRY = 0.5
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

    def settled(self, delivery: Delivery) -> None:
        """Note that a message ended for good, where that was through a retired consumer."""
        if consumer_of(delivery.token) in self.names:
            sequence, stored = delivery.id
            self.ended[sequence] = stored
            self.wake.set()


class FinishedDeleter:
    """Deletes the messages in *retired* from one stream."""

    def __init__(self, jetstream: JetStream, stream: str, retired: RetiredConsumers) -> None:
        self._jetstream, self._stream, self._retired = jetstream, stream, retired
        self._unanswered: set[int] = set()
        """Sequences whose deletion had no answer."""

    async def wait_done(self) -> None:
        """Return when no message is left to be deleted."""
        while self._retired.ended:  # noqa: ASYNC110 -- what changes is at the server
            await asyncio.sleep(_LOOK)

    def forget(self) -> None:
        """Delete none of the messages until now: the stream was replaced, and its sequences name other messages."""
        self._retired.ended.clear()
        self._unanswered.clear()

    async def run(self) -> None:
        """Delete until cancelled."""
        ended = self._retired.ended
        while True:
            await self._retired.wake.wait()
            self._retired.wake.clear()
            while some := [*ended][:_AT_ONCE]:
                deleted = await asyncio.gather(*map(self._delete, some))
                for sequence, gone in zip(some, deleted, strict=True):
                    if gone:
                        ended.pop(sequence, None)
                if not all(deleted):
                    await asyncio.sleep(_RETRY)

    async def _delete(self, sequence: int) -> bool:
        """Delete a message, and return whether it is gone."""
        try:
            if sequence not in self._unanswered or await self._is_same(sequence):
                await self._jetstream.delete_message(self._stream, sequence)
        except BrokerUnavailableError:
            self._unanswered.add(sequence)
            return False
        except ApiError:
            pass  # there is no such message any more
        self._unanswered.discard(sequence)
        return True

    async def _is_same(self, sequence: int) -> bool:
        # After a silence the stream may be another one, which has the sequence of the old one's message.
        found = await self._jetstream.message(self._stream, sequence)
        return abs(nanoseconds(found.time) - self._retired.ended.get(sequence, 0)) < _EXACT
