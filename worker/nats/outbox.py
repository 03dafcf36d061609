"""Settlements and lease extensions that wait to be sent, or to be confirmed.

The Trio side only notes them; one asyncio task sends many at each wake-up, so nothing crosses over per message. Each
counts only when the server has answered on its reply subject; else it is sent again, within two limits. An extension is
never sent after the settlement of its delivery, and a nak only while no other worker can have the message. The reasons
are in docs/architecture.md, under Confirmations.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import nats.errors
import trio
from msgspec import Struct
from nats.aio.msg import Msg

from ..events import SettlementUnconfirmed
from ..model import Ack, Delivery, MessageId, Nak, Settlement, Term
from ..ports import Emit
from . import nats_internals
from .attempt_counts import AttemptCounts
from .connection import Connection
from .retired_consumers import RetiredConsumers

_CONFIRMED_WITHIN = 2.0
"""Seconds without a confirmation after which a settlement or an extension is sent again."""
_MAX_TRIES = 30
"""Times that an ack or a term is sent: for a minute, while connected to a server that does not answer."""
_CROWDED = 4_096
"""Unconfirmed settlements above which no more messages are requested: the server cannot keep up."""


class PendingAck(Struct, eq=False):
    """A settlement or an extension that is not confirmed."""

    delivery: Delivery
    settlement: Settlement | None
    """None for an extension."""
    before: float
    """A nak or an extension is not sent after this time."""
    due: float = 0.0
    """The end of a nak's delay."""
    confirmed: Callable[[], None] | None = None
    sent_at: float = float("-inf")
    tries: int = 0

    def payload(self, now: float) -> bytes:
        """Return the message that JetStream reads."""
        match self.settlement:
            case Ack():
                return b"+ACK"
            case Term(reason):
                return b"+TERM " + reason.encode(errors="replace")[:256].replace(b"\n", b" ").replace(b"\r", b" ")
            case Nak() if self.due > now:
                return b'-NAK {"delay": %d}' % round((self.due - now) * 1e9)
            case Nak():
                return b"-NAK"
            case _:
                return b"+WPI"

    def may_be_sent(self, now: float) -> bool:
        """Return whether it may be sent now, for the first time or again."""
        match self.settlement:
            case None:
                return now < self.before
            case Nak():  # after its delay, the server has redelivered, if it received the first one
                return now < self.before and (self.tries == 0 or now < self.due)
            case _:
                return self.tries < _MAX_TRIES


class Outbox:
    """The pending acks of all deliveries.

    While consumers are retired, *retired* gets the messages that have ended. *counts* are announced before any
    settlement that was noted after them.
    """

    def __init__(self, connection: Connection, emit: Emit, retired: RetiredConsumers, counts: AttemptCounts) -> None:
        self._connection, self._emit, self._retired, self._counts = connection, emit, retired, counts
        self._queue: deque[PendingAck] = deque()
        self._unconfirmed: dict[str, PendingAck] = {}
        self._extending: dict[MessageId, str] = {}
        """The number of a delivery's extension in the above."""
        self._postponed: deque[tuple[str, bytes]] = deque()
        self._unsettled = 0
        self._all_settled = trio.Event()
        self._numbers = count()
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """Wakes the task that sends."""
        self._inbox = self.epoch = ""
        """The epoch identifies the stream, which may be deleted and created again with the same name and sequences. A
        delivery's token is the epoch of its arrival, and its reply subject."""

    @property
    def crowded(self) -> bool:
        """Whether the server confirms so slowly that no more messages should be requested."""
        return self._unsettled > _CROWDED

    # Called on the Trio side; none of these waits.

    def settle(
        self,
        delivery: Delivery,
        settlement: Settlement,
        *,
        before: float,
        confirmed: Callable[[], None] | None = None,
    ) -> None:
        """See :meth:`worker.ports.Queue.settle`; *confirmed* is called on the asyncio side."""
        self._unconfirmed.pop(self._extending.pop(delivery.id, ""), None)
        due = trio.current_time() + settlement.delay if isinstance(settlement, Nak) else 0.0
        self._queue.append(PendingAck(delivery, settlement, before, due, confirmed))
        self._unsettled += 1
        self.wake()

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """See :meth:`worker.ports.Queue.extend`."""
        self._queue.append(PendingAck(delivery, None, before, confirmed=confirmed))
        self.wake()

    def postpone(self, reply: str, delay: float) -> None:
        """Send a nak with a delay (s) for a delivery that does not run. Only once: its ack wait has the same effect."""
        self._postponed.append((reply, b'-NAK {"delay": %d}' % round(delay * 1e9)))
        self.wake()

    async def wait_settled(self) -> None:
        """See :meth:`worker.ports.Queue.wait_settled`."""
        while self._unsettled:
            self._all_settled = trio.Event()
            await self._all_settled.wait()

    # Called on the asyncio side.

    async def open(self) -> None:
        """Subscribe to confirmations."""
        self._inbox = self._connection.client.new_inbox()
        await nats_internals.listen(self._connection.client, f"{self._inbox}.*", self._on_confirmation)

    async def send(self) -> None:
        """Send all that is noted, once there may be something, or a request for messages."""
        await self._wake.wait()
        self._wake.clear()
        while self._queue and self._connection.up:
            if self._counts.waiting:
                await self._counts.send()
            await self._send_one(self._queue.popleft())
        while self._postponed and self._connection.up:
            with suppress(nats.errors.Error, OSError):
                await self._connection.client.publish(*self._postponed.popleft())

    def repeat_late(self, now: float) -> None:
        """Send again what was not confirmed in time; called a few times a second, and with inf after connecting."""
        late = [number for number, pending in self._unconfirmed.items() if now - pending.sent_at > _CONFIRMED_WITHIN]
        self._queue.extend(self._unconfirmed.pop(number) for number in late)
        self.wake()

    def forget(self) -> None:
        """Drop all that is noted, because its stream was deleted: its sequences may identify other messages now."""
        self.epoch = f"{next(self._numbers)} "
        self._queue.clear()
        self._unconfirmed.clear()
        self._extending.clear()
        self._count_settled(self._unsettled)

    async def _send_one(self, pending: PendingAck) -> None:
        now = trio.current_time()
        token = pending.delivery.token
        if not (token.startswith(self.epoch) and pending.may_be_sent(now)):
            self._drop(pending)
            return
        number = str(next(self._numbers))
        pending.sent_at, pending.tries = now, pending.tries + 1
        self._unconfirmed[number] = pending
        if pending.settlement is None:
            self._extending[pending.delivery.id] = number
        try:
            await self._connection.client.publish(
                token[len(self.epoch) :], pending.payload(now), f"{self._inbox}.{number}"
            )
        except (nats.errors.Error, OSError) as error:
            self._connection.report_failure("settling", error)  # it stays unconfirmed, and is sent again

    def _on_confirmation(self, message: Msg) -> None:
        if message.headers and message.headers.get("Status"):
            return  # 503: there was no consumer, or no leader, to receive it; it is sent again
        if pending := self._unconfirmed.pop(message.subject[len(self._inbox) + 1 :], None):
            if pending.settlement is not None:
                if self._retired.names and not isinstance(pending.settlement, Nak):
                    self._retired.settled(pending.delivery)
                if pending.confirmed:
                    pending.confirmed()
                self._count_settled(1)
            elif pending.confirmed:
                self._extending.pop(pending.delivery.id, None)
                pending.confirmed()

    def _drop(self, pending: PendingAck) -> None:
        if pending.settlement is None:
            self._extending.pop(pending.delivery.id, None)
        else:
            self._count_settled(1)
            if pending.tries:
                self._emit(SettlementUnconfirmed(1))

    def _count_settled(self, settled: int) -> None:
        self._unsettled -= settled
        if not self._unsettled:
            self._all_settled.set()
