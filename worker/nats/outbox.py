"""What we have to say about deliveries: settlements and lease extensions, said in order and confirmed.

The Trio side only notes down; one asyncio task sends, many per wake-up, so nothing crosses per message. Each thing
said carries a reply subject, and counts only when the server answered there: of 1,000 plain acks flushed just before
a server died, 452 were lost, of confirmed ones none. What is not confirmed is said again, within two limits: an
extension never after the settlement of its delivery (it would cancel a NAK's delay), and a NAK only while nobody else
can have the message (a stale one would give out again what they are running).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
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
from .connection import Connection
from .finished_deleter import RetiredConsumers

_PATIENCE = 2.0
"""Seconds without an answer after which something is said again."""
_TRIES = 30
"""How often a final settlement is said before we stop: a minute of being connected to a server that does not answer."""
_BACKPRESSURE = 4_096
"""Settlements in the air above which no more work is asked for: the broker cannot follow."""


class PendingAck(Struct, eq=False):
    """One thing to say about one delivery."""

    delivery: Delivery
    settlement: Settlement | None
    """None: an extension."""
    before: float
    """A NAK or an extension is not said after this."""
    due: float = 0.0
    """When a NAK's delay is over."""
    confirmed: Callable[[], None] | None = None
    sent: float = float("-inf")
    tries: int = 0

    def payload(self, now: float) -> bytes:
        """The verb, as JetStream reads it."""
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

    def sayable(self, now: float) -> bool:
        """Whether it may still be said: for the first time, or once more."""
        match self.settlement:
            case None:
                return now < self.before
            case Nak():
                return now < self.before and (self.tries == 0 or now < self.due)
            case _:
                return self.tries < _TRIES


class Outbox:
    """All that is to be said, and all that was said and not confirmed yet."""

    def __init__(self, connection: Connection, emit: Emit, retired: RetiredConsumers) -> None:
        self._connection, self._emit, self._retired = connection, emit, retired
        self._queue: deque[PendingAck] = deque()
        self._unconfirmed: dict[int, PendingAck] = {}
        self._extending: dict[MessageId, int] = {}
        """Which entry of the above is a delivery's extension."""
        self._put_off: deque[tuple[str, bytes]] = deque()
        self._unsettled = 0
        self._all_settled = trio.Event()
        self._numbers = count()
        self._wake = asyncio.Event()
        self._inbox = ""
        self._streams = count()
        self._epoch = f"{next(self._streams)} "
        """Which stream we talk about: deleted and made anew, it has the same name and sequence numbers. A token begins
        with it."""
        self.after: list[Callable[[], Awaitable[None]]] = []
        """What else is to be sent at each wake-up, after all settlements."""

    @property
    def crowded(self) -> bool:
        """Whether the broker confirms so slowly that we had better not take more work."""
        return self._unsettled > _BACKPRESSURE

    def token(self, reply: str) -> str:
        """The token of a delivery that comes now, with this reply subject."""
        return self._epoch + reply

    # Called on the Trio side; none of these waits.

    def settle(self, delivery: Delivery, settlement: Settlement, *, before: float) -> None:
        """See :meth:`worker.ports.Queue.settle`."""
        self._unconfirmed.pop(self._extending.pop(delivery.id, -1), None)
        due = trio.current_time() + settlement.delay if isinstance(settlement, Nak) else 0.0
        self._queue.append(PendingAck(delivery, settlement, before, due))
        self._unsettled += 1
        self.wake()

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """See :meth:`worker.ports.Queue.extend`."""
        self._queue.append(PendingAck(delivery, None, before, confirmed=confirmed))
        self.wake()

    def put_off(self, reply: str, delay: float) -> None:
        """Give back a delivery that is none of ours, with a wait (s). It is said once: its ack wait does the same."""
        self._put_off.append((reply, b'-NAK {"delay": %d}' % round(delay * 1e9)))
        self.wake()

    def wake(self) -> None:
        """There is something to send."""
        if not self._wake.is_set():
            self._wake.set()

    async def wait_settled(self) -> None:
        """See :meth:`worker.ports.Queue.wait_settled`."""
        while self._unsettled:
            self._all_settled = trio.Event()
            await self._all_settled.wait()

    # Called on the asyncio side.

    async def open(self) -> None:
        """Listen for confirmations."""
        self._inbox = self._connection.client.new_inbox()
        await nats_internals.listen(self._connection.client, f"{self._inbox}.*", self._on_confirmation)

    async def pump(self) -> None:
        """Send, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue and self._connection.up:
                await self._say(self._queue.popleft())
            while self._put_off and self._connection.up:
                with suppress(nats.errors.Error, OSError):
                    await self._connection.client.publish(*self._put_off.popleft())
            if self._connection.up:
                for send in self.after:
                    await send()

    def repeat(self, now: float) -> None:
        """Say again what was not confirmed in time; to be called a few times a second."""
        late = [number for number, said in self._unconfirmed.items() if now - said.sent > _PATIENCE]
        self._queue.extend(self._unconfirmed.pop(number) for number in late)
        if late:
            self.wake()

    def forget(self) -> None:
        """Say no more of what came until now: its stream is gone, and its sequence numbers may name new messages."""
        self._epoch = f"{next(self._streams)} "
        self._queue.clear()
        self._unconfirmed.clear()
        self._extending.clear()
        self._count_settled(self._unsettled)

    async def _say(self, said: PendingAck) -> None:
        now = trio.current_time()
        token = said.delivery.token
        if not (token.startswith(self._epoch) and said.sayable(now)):
            self._drop(said)
            return
        number = next(self._numbers)
        said.sent, said.tries = now, said.tries + 1
        self._unconfirmed[number] = said
        if said.settlement is None:
            self._extending[said.delivery.id] = number
        try:
            await self._connection.client.publish(
                token[len(self._epoch) :], said.payload(now), f"{self._inbox}.{number}"
            )
        except (nats.errors.Error, OSError) as error:
            self._connection.report_failure("settling", error)  # it stays unconfirmed, and is said again

    def _on_confirmation(self, message: Msg) -> None:
        last = message.subject[len(self._inbox) + 1 :]
        if not (last.isascii() and last.isdigit()):
            return  # anyone who may publish there can; it answers nothing of ours
        number = int(last)
        if message.headers and message.headers.get("Status"):
            return  # 503: nobody heard it, for want of a consumer or a leader; it is said again
        if said := self._unconfirmed.pop(number, None):
            if said.settlement is not None:
                if self._retired.names and not isinstance(said.settlement, Nak):
                    self._retired.settled(said.delivery)
                self._count_settled(1)
            elif said.confirmed:
                self._extending.pop(said.delivery.id, None)
                said.confirmed()

    def _drop(self, said: PendingAck) -> None:
        if said.settlement is None:
            self._extending.pop(said.delivery.id, None)
        else:
            self._count_settled(1)
            if said.tries:
                self._emit(SettlementUnconfirmed(1))

    def _count_settled(self, settled: int) -> None:
        self._unsettled -= settled
        if not self._unsettled:
            self._all_settled.set()

    def connection_changed(self, up: bool) -> None:
        """Send again all that is not confirmed, once there is a connection."""
        if up:
            self.repeat(float("inf"))
            self.wake()
