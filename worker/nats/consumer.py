"""A pull consumer of our own, on plain subscriptions.

nats-py's ``fetch`` asks for too much, strands what comes late, loses what it holds when cancelled, and costs several
times as much (docs/architecture.md). Here a callback stamps each delivery and hands it to Trio; what to ask for is
:mod:`worker.nats.credit`'s to say.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from trio_asyncio import aio_as_trio

from ..model import Delivery
from . import quirks
from .connection import Connection
from .credit import EXPIRES, HEARTBEAT, Credit, Lane
from .outbox import Outbox
from .wire import parse_ack_subject, parse_status

_STOP = 2.0
"""Seconds that stopping waits for what is already on its way."""
_MOST_LEFT = 8
"""Old inboxes that are still heard: two rounds of silence on all lanes."""
_CALM = 0.25
"""Seconds without a new request after one that the server turned down."""


class PullConsumer:
    """See :class:`worker.ports.Consumer`.

    Args:
        connection: its client.
        outbox: sends our requests after all settlements.
        credit: the books.
        lost: called when the server says that the consumer is gone.
    """

    def __init__(self, connection: Connection, outbox: Outbox, credit: Credit, lost: Callable[[], None]) -> None:
        self.ack_wait = 0.0
        self.bound = False
        """Whether there is something to pull from, as far as we know."""
        self._connection, self._outbox, self._credit, self._lost = connection, outbox, credit, lost
        self._subject = ""
        self._inboxes: dict[int, tuple[str, Subscription]] = {}
        self._left: deque[Subscription] = deque()
        """Old inboxes that are still heard, for what comes late."""
        self._here: list[Delivery] = []
        """What came and was not received yet; bounded by credit."""
        self._receivers = trio.lowlevel.ParkingLot()
        self._stopped = False
        self._calm_until = 0.0
        self._listened = 0.0
        connection.changed.append(self._on_change)
        outbox.after.append(self._refill)

    # The Trio side.

    def want(self, more: int) -> None:
        """See :meth:`worker.ports.Consumer.want`."""
        self._credit.want(more)
        self._outbox.wake()

    async def receive(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.receive`."""
        while not self._here:
            await self._receivers.park()
        return self._taken()

    async def stop(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.stop`."""
        self._stopped = True
        with trio.move_on_after(_STOP):
            await aio_as_trio(self._end_interest)()
        return self._taken()

    def _taken(self) -> list[Delivery]:
        here, self._here = self._here, []
        return here

    # The asyncio side.

    async def bind(self, subject: str, ack_wait: float) -> None:
        """Begin, or begin again, to pull: into new inboxes, so that nothing asked for before is answered now.

        Args:
            subject: where to ask for the next messages.
            ack_wait: the consumer's (s).
        """
        for lane in self._credit.lanes:
            await self._listen(lane)
        await self._close_left(0)
        self._subject, self.ack_wait, self.bound = subject, ack_wait, True
        self._outbox.wake()

    async def check(self, now: float) -> None:
        """Give up requests of which nothing was heard; to be called a few times a second."""
        if now - self._listened > 2 * HEARTBEAT:  # it was we who stood still: a stopped process, a starved loop
            self._credit.excuse(now)
        self._listened = now
        if self.bound and self._connection.up:
            for lane in self._credit.silent(now):
                _, subscription = self._inboxes[lane.number]
                await quirks.end_interest(self._connection.client, subscription)
                await self._listen(lane)
            await self._close_left(_MOST_LEFT)
            self._outbox.wake()

    async def _listen(self, lane: Lane) -> None:
        """Give a lane a new inbox; what comes late into the old one is heard until that is closed."""
        if old := self._inboxes.get(lane.number):
            self._left.append(old[1])
        self._credit.ended(lane)
        inbox = self._connection.client.new_inbox()
        hear = partial(self._on_message, lane, inbox)
        subscription = await quirks.listen(self._connection.client, inbox, hear)
        self._inboxes[lane.number] = inbox, subscription

    async def _close_left(self, most: int) -> None:
        while len(self._left) > most:
            await self._left.popleft().unsubscribe()

    def _on_message(self, lane: Lane, inbox: str, message: Msg) -> None:
        now = trio.current_time()
        current = self._inboxes[lane.number][0] == inbox
        if not message.reply:
            if current:
                self._on_status(lane, message, now)
            return
        self._credit.came(lane if current else None, now)
        try:
            identity, count = parse_ack_subject(message.reply)
        except ValueError as error:
            self._connection.complain("reading a delivery", error)
            self._credit.want(1)
            return
        self._here.append(
            Delivery(identity, self._outbox.token(message.reply), count, now, message.subject, message.data)
        )
        self._receivers.unpark()
        if not lane.outstanding:
            self._outbox.wake()

    def _on_status(self, lane: Lane, message: Msg, now: float) -> None:
        status = parse_status(message.headers)
        if status is None or status.heartbeat:
            self._credit.heard(lane, now)
            return
        self._credit.ended(lane)
        if status.trouble:
            self._calm_until = now + _CALM
        if status.consumer_gone:
            self.gone()
        elif status.trouble and status.code != 409:
            self._connection.complain("pulling", f"{status.code} {status.description}")
        self._outbox.wake()

    async def _refill(self) -> None:
        now = trio.current_time()
        if not self.bound or self._stopped or now < self._calm_until or self._outbox.crowded:
            return
        while request := self._credit.request(now):
            body = {"batch": request.batch, "expires": round(EXPIRES * 1e9), "idle_heartbeat": round(HEARTBEAT * 1e9)}
            inbox, _ = self._inboxes[request.lane.number]
            try:
                await self._connection.client.publish(self._subject, json.dumps(body).encode(), inbox)
            except (nats.errors.Error, OSError) as error:
                self._connection.complain("pulling", error)
                self._credit.ended(request.lane)
                return

    async def _end_interest(self) -> None:
        if not self._connection.up:
            return
        for _, subscription in self._inboxes.values():
            await quirks.end_interest(self._connection.client, subscription)
        await self._outbox.echo()

    def gone(self) -> None:
        """The consumer is no more; ask for nothing until it is bound again."""
        self.bound = False
        self._lost()

    def _on_change(self, up: bool) -> None:
        if not up:
            self.bound = False
            for lane in self._credit.lanes:
                self._credit.ended(lane)
