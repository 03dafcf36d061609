"""The messages between workers about attempts: which deliveries of a message were none.

JetStream counts deliveries, and a worker that another one's message reaches has nothing else. So a worker that naks a
message whose attempts are fewer announces their number on a subject, over the connection of the nak and before it. On
one server, another worker therefore receives it before the message. Nothing depends on it: without the announcement the
delivery count stands, which gives up early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec
import nats.errors
from msgspec import Meta
from nats.aio.msg import Msg

from ..model import AttemptCount
from . import nats_internals
from .connection import Connection

_IN_ONE_MESSAGE = 1_000
"""Counts in one message: a tenth of the megabyte that a message may have."""
_WAITING = 20_000
"""Counts that wait to be sent at most: as many messages as a ledger remembers."""

_Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Counts = Annotated[list[tuple[_Number, _Number, _Number, _Number]], Meta(max_length=_IN_ONE_MESSAGE)]
"""Of each message its sequence, its time of storing (ns), its deliveries, and the attempts among these."""


class AttemptCounts:
    """This worker's announcements to other workers, and theirs, with each of which *learned* is called."""

    def __init__(self, connection: Connection, learned: Callable[[AttemptCount], None]) -> None:
        self._connection, self._learned = connection, learned
        self._subject = ""
        self.waiting: deque[AttemptCount] = deque(maxlen=_WAITING)
        """The counts to announce before the next settlement is sent."""

    def announce(self, count: AttemptCount) -> None:
        """See :meth:`worker.ports.Queue.announce`."""
        self.waiting.append(count)

    async def open(self, stream: str) -> None:
        """Subscribe to the announcements of the workers of a stream."""
        self._subject = f"queue-worker.{stream}.attempts"
        await nats_internals.listen(self._connection.client, self._subject, self._on_announced)

    async def send(self) -> None:
        """Announce what waits, many counts in a message."""
        while self.waiting:
            size = min(len(self.waiting), _IN_ONE_MESSAGE)
            counts = [self.waiting.popleft() for _ in range(size)]
            text = msgspec.json.encode([(*each.id, each.num_delivered, each.attempts) for each in counts])
            try:
                await self._connection.client.publish(self._subject, text)
            except (nats.errors.Error, OSError) as error:
                self._connection.report_failure("announcing deliveries that were no attempts", error)

    def _on_announced(self, message: Msg) -> None:
        try:
            found = msgspec.json.decode(message.data, type=_Counts)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._connection.report_foreign("reading the attempts that another worker announced", error)
            return
        for sequence, stored, num_delivered, attempts in found:
            self._learned(AttemptCount((sequence, stored), num_delivered, attempts))
