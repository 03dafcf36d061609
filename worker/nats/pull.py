"""The pulls of one flow, on plain subscriptions.

nats-py's ``fetch`` asks for too much, strands what comes late, loses what it holds when cancelled, and costs several
times as much (docs/architecture.md). Here a callback stamps each delivery and lays it down for Trio; what to ask for is
:mod:`worker.nats.credit`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..model import CreditReturned, Delivery, Notice
from ..policy.quota import is_token_flow
from . import nats_internals
from .connection import Connection
from .credit import EXPIRES, HEARTBEAT, Credit, PullInbox
from .layout import ConsumerSet
from .outbox import Outbox
from .wire import consumer_of, parse_ack_subject, parse_status

_CALM = 0.25
"""Seconds without a new request after one that the server turned down."""
_PUT_OFF = 30.0
"""Seconds after which a message that a retired consumer has is seen again, to find that it is over."""
_LATE = 5.0
"""Seconds that an inbox is heard after its interest ended: what comes by way of another server of a cluster may be
later than the answer of ours."""
_VERY_LATE = 60.0
"""The same after silence: a server that stood still goes on where it was."""


class DeliveryBuffer:
    """What came for Trio and was not received yet; bounded by credit. And old inboxes, for what comes late."""

    def __init__(self) -> None:
        self._here: list[Delivery | Notice] = []
        self._receivers = trio.lowlevel.ParkingLot()
        self._left: list[tuple[float, Subscription]] = []
        self.retiring: ConsumerSet | None = None
        """Where there are retired consumers: whose messages are not ours, whoever hands them out."""

    def put(self, what: Delivery | Notice) -> None:
        """Something came."""
        self._here.append(what)
        self._receivers.unpark()

    async def wait(self) -> None:
        """Return when there is something."""
        while not self._here:
            await self._receivers.park()

    def taken(self) -> list[Delivery | Notice]:
        """All of it."""
        here, self._here = self._here, []
        return here

    def leave(self, subscription: Subscription, until: float) -> None:
        """Hear an old inbox until then."""
        self._left.append((until, subscription))

    async def close_left(self, now: float) -> None:
        """Close the old inboxes whose time is over."""
        if any(until <= now for until, _ in self._left):
            over = [subscription for until, subscription in self._left if until <= now]
            self._left = [(until, subscription) for until, subscription in self._left if until > now]
            for subscription in over:
                with suppress(nats.errors.Error):  # closed, or about to be
                    await subscription.unsubscribe()


class Pull:
    """One flow.

    Args:
        flow: its name.
        connection: its client.
        outbox: sends our requests after all settlements.
        credit: the books.
        arrivals: where deliveries go.
        lost: called when the server says that the consumer is gone.
        asks: called when there may be something to ask for.
    """

    __slots__ = (
        "_arrivals",
        "_asks",
        "_calm_until",
        "_connection",
        "_credit",
        "_inboxes",
        "_lost",
        "_outbox",
        "_subject",
        "_withdrawn",
        "flow",
        "making",
        "recalled",
    )

    def __init__(
        self,
        flow: str,
        connection: Connection,
        outbox: Outbox,
        *,
        credit: Credit,
        arrivals: DeliveryBuffer,
        lost: Callable[[Pull], None],
        asks: Callable[[Pull], None],
    ) -> None:
        self.flow = flow
        self._connection, self._outbox, self._credit, self._arrivals = connection, outbox, credit, arrivals
        self._lost, self._asks = lost, asks
        self._subject = ""
        """Where to ask for the next messages; nothing where there is no consumer, as far as we know."""
        self._inboxes: dict[int, tuple[str, Subscription]] = {}
        """By lane; made when they are needed."""
        self._withdrawn: list[PullInbox] = []
        self._calm_until = 0.0
        self.making = False
        """Somebody sees to its consumer."""
        self.recalled = False
        """What is wanted is on its way back, so nothing is asked for."""

    @property
    def bound(self) -> bool:
        """Whether there is something to pull from, as far as we know."""
        return bool(self._subject)

    @property
    def outstanding(self) -> int:
        """What requests may still bring."""
        return self._credit.outstanding

    @property
    def wanted(self) -> bool:
        """Whether there is something to ask for."""
        return self._credit.unasked > 0

    def add_credit(self, more: int) -> None:
        """See :meth:`worker.ports.Consumer.add_credit`."""
        self._credit.want(more)

    def bind(self, subject: str) -> None:
        """There is a consumer: ask there."""
        self._subject = subject
        self._asks(self)

    def unbind(self) -> None:
        """There is none: nothing that was asked for comes."""
        self._subject = ""
        for lane in self._credit.lanes:
            self._credit.ended(lane)

    def disconnected(self) -> None:
        """Whatever was asked for comes no more, and if it does, into inboxes that are closed soon."""
        for lane in self._credit.lanes:
            self._credit.ended(lane)
        self._leave(-inf)

    async def ask(self, now: float) -> bool:
        """Send what requests there are to send. False: not now, but there are some."""
        if self.recalled or not self._subject:
            return True
        if now < self._calm_until:
            return False
        while request := self._credit.request(now):
            body = {"batch": request.batch, "expires": round(EXPIRES * 1e9), "idle_heartbeat": round(HEARTBEAT * 1e9)}
            try:
                if request.lane.number not in self._inboxes:
                    await self._listen(request.lane)
                inbox, _ = self._inboxes[request.lane.number]
                await self._connection.client.publish(self._subject, json.dumps(body).encode(), inbox)
            except (nats.errors.Error, OSError) as error:
                self._connection.report_failure("pulling", error)
                self._credit.ended(request.lane)
                return False
        return True

    def excuse(self, now: float) -> None:
        """We were not listening until now: no silence before counts."""
        self._credit.excuse(now)

    async def give_up_silent(self, now: float) -> None:
        """Give up requests of which nothing was heard for too long."""
        for lane in self._credit.silent(now):
            self._credit.ended(lane)
            await self._end_interest(lane, now + _VERY_LATE)
            self._asks(self)

    async def withdraw(self) -> None:
        """Have the server answer no request any more; what is on its way is still heard."""
        for lane in self._credit.lanes:
            if lane.outstanding and lane.number in self._inboxes:
                self._withdrawn.append(lane)
                _, subscription = self._inboxes[lane.number]
                await nats_internals.end_interest(self._connection.client, subscription)

    def withdrawn(self, now: float) -> None:
        """What was on its way has come: tell what did not. Lanes get new inboxes."""
        for lane in self._withdrawn:
            if inbox := self._inboxes.pop(lane.number, None):
                self._arrivals.leave(inbox[1], now + _LATE)
        self._withdrawn.clear()
        self.recalled = False
        self._arrivals.put(CreditReturned(self.flow, self._credit.give_back()))

    def close(self, until: float) -> None:
        """Ask for nothing more; what comes late is heard until then."""
        self.unbind()
        self._leave(until)

    def _leave(self, until: float) -> None:
        for _, subscription in self._inboxes.values():
            self._arrivals.leave(subscription, until)
        self._inboxes.clear()

    async def _end_interest(self, lane: PullInbox, until: float) -> None:
        if inbox := self._inboxes.pop(lane.number, None):
            self._arrivals.leave(inbox[1], until)
            await nats_internals.end_interest(self._connection.client, inbox[1])

    async def _listen(self, lane: PullInbox) -> None:
        inbox = self._connection.client.new_inbox()
        hear = partial(self._on_message, lane, inbox)
        subscription = await nats_internals.listen(self._connection.client, inbox, hear)
        self._inboxes[lane.number] = inbox, subscription

    def _on_message(self, lane: PullInbox, inbox: str, message: Msg) -> None:
        now = trio.current_time()
        current = (here := self._inboxes.get(lane.number)) is not None and here[0] == inbox
        if not message.reply:
            if current:
                self._on_status(lane, message, now)
            return
        self._credit.received(lane if current else None, now)
        try:
            identity, count, behind = parse_ack_subject(message.reply)
        except ValueError as error:
            self._connection.report_failure("reading a delivery", error)
            self.add_credit(1)
            self._asks(self)
            return
        retiring = self._arrivals.retiring
        if (
            retiring is not None
            and not is_token_flow(self.flow)
            and retiring.is_held(message.subject, identity[0], consumer_of(message.reply))
        ):
            self._outbox.put_off(message.reply, _PUT_OFF)
            self.add_credit(1)
        else:
            token = self._outbox.token(message.reply)
            self._arrivals.put(Delivery(identity, token, count, now, message.subject, message.data, self.flow, behind))
        if not lane.outstanding:
            self._asks(self)

    def _on_status(self, lane: PullInbox, message: Msg, now: float) -> None:
        status = parse_status(message.headers)
        if status is None or status.heartbeat:
            self._credit.heard(lane, now)
            return
        self._credit.ended(lane)
        if status.trouble:
            self._calm_until = now + _CALM
        if status.consumer_gone:
            self._lost(self)
        elif status.trouble and status.code != 409:
            self._connection.report_failure("pulling", f"{status.code} {status.description}")
        self._asks(self)
