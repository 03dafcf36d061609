"""The pulls of one flow, on plain subscriptions.

A callback stamps each delivery and puts it into a buffer for Trio; :mod:`worker.nats.credit` decides which requests to
send. docs/architecture.md has the reasons against nats-py's ``fetch``.
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

_AFTER_REJECTION = 0.25
"""Seconds without a new request after one that the server rejected."""
_POSTPONED = 30.0
"""Seconds after which a message that a retired consumer holds is delivered again, so that its end is seen."""
_LATE = 5.0
"""Seconds that an inbox is read after its interest ended: what comes through another server of a cluster may arrive
after the answer of the connected one."""
_VERY_LATE = 60.0
"""Seconds after a silence: a server that was suspended continues where it was."""


class DeliveryBuffer:
    """Deliveries and notices for Trio, bounded by credit; and old inboxes, for deliveries that arrive late."""

    def __init__(self, outbox: Outbox) -> None:
        self.deliver: Callable[[Pull, str, Delivery], None] = self._deliver
        """Accepts a delivery that arrived with a reply subject."""
        self._outbox = outbox
        self._consumers = ConsumerSet()
        self._buffer: list[Delivery | Notice] = []
        self._receivers = trio.lowlevel.ParkingLot()
        self._old_inboxes: list[tuple[float, Subscription]] = []

    def put(self, each: Delivery | Notice) -> None:
        """Add a delivery or a notice."""
        self._buffer.append(each)
        self._receivers.unpark()

    async def wait(self) -> None:
        """Return when the buffer has something."""
        while not self._buffer:
            await self._receivers.park()

    def take_all(self) -> list[Delivery | Notice]:
        """Empty the buffer."""
        taken, self._buffer = self._buffer, []
        return taken

    def set_consumers(self, consumers: ConsumerSet) -> None:
        """Give back what a retired consumer holds, while there is one: another consumer may deliver it, too."""
        self._consumers = consumers
        self.deliver = self._deliver_unless_held if consumers.retired else self._deliver

    def _deliver(self, _: Pull, __: str, delivery: Delivery) -> None:
        self._buffer.append(delivery)
        self._receivers.unpark()

    def _deliver_unless_held(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        held = self._consumers.is_held(delivery.subject, delivery.id[0], consumer_of(reply))
        if held and not is_token_flow(pull.flow):
            self._outbox.postpone(reply, _POSTPONED)
            pull.add_credit(1)
        else:
            self.put(delivery)

    def keep_old_inbox(self, subscription: Subscription, until: float) -> None:
        """Read an old inbox until then."""
        self._old_inboxes.append((until, subscription))

    async def close_old_inboxes(self, now: float) -> None:
        """Unsubscribe from the old inboxes whose time is over."""
        closed = [subscription for until, subscription in self._old_inboxes if until <= now]
        if closed:
            self._old_inboxes = [(until, subscription) for until, subscription in self._old_inboxes if until > now]
            for subscription in closed:
                with suppress(nats.errors.Error):  # the connection is closed, or will be
                    await subscription.unsubscribe()


class Pull:
    """The pulls of one flow.

    Args:
        lost: called when the server reports that the consumer does not exist.
        may_request: called when there may be a request to send.
    """

    def __init__(
        self,
        flow: str,
        connection: Connection,
        outbox: Outbox,
        *,
        credit: Credit,
        buffer: DeliveryBuffer,
        lost: Callable[[Pull], None],
        may_request: Callable[[Pull], None],
    ) -> None:
        self.flow = flow
        self._connection, self._outbox, self._credit, self._buffer = connection, outbox, credit, buffer
        self._lost, self._may_request = lost, may_request
        self._subject = ""
        """The subject of requests. Empty where no consumer is known."""
        self._inboxes: dict[int, tuple[str, Subscription]] = {}
        """By the number of the inbox; subscribed to when it is first used."""
        self._ending: list[PullInbox] = []
        """Inboxes whose interest has ended, and that are read until a round trip is complete."""
        self._no_requests_until = 0.0
        self.creating = False
        """Its consumer is being created."""
        self.recalled = False
        """Its credit is being taken back, so nothing is requested."""

    @property
    def bound(self) -> bool:
        """Whether there is a consumer to pull from, as far as is known."""
        return bool(self._subject)

    @property
    def outstanding(self) -> int:
        """Messages that open requests may still bring."""
        return self._credit.outstanding

    @property
    def wanted(self) -> bool:
        """Whether there is credit to request messages for."""
        return self._credit.unrequested > 0

    def add_credit(self, more: int) -> None:
        """See :meth:`worker.ports.Consumer.add_credit`."""
        self._credit.add(more)

    def bind(self, subject: str) -> None:
        """Pull from a consumer, by requests that are published on *subject*."""
        self._subject = subject
        self._may_request(self)

    def unbind(self) -> None:
        """Expect nothing more of open requests, because the consumer does not exist."""
        self._subject = ""
        for inbox in self._credit.inboxes:
            self._credit.end_request(inbox)

    def disconnected(self) -> None:
        """Expect nothing more of open requests; what they bring nevertheless goes to inboxes that are closed soon."""
        for inbox in self._credit.inboxes:
            self._credit.end_request(inbox)
        self._leave_inboxes(-inf)

    async def send_requests(self, now: float) -> bool:
        """Send the requests that there are. Return False where some have to wait."""
        if self.recalled or not self._subject:
            return True
        if now < self._no_requests_until:
            return False
        while request := self._credit.next_request(now):
            body = {"batch": request.batch, "expires": round(EXPIRES * 1e9), "idle_heartbeat": round(HEARTBEAT * 1e9)}
            try:
                if request.inbox.number not in self._inboxes:
                    await self._subscribe(request.inbox)
                reply, _ = self._inboxes[request.inbox.number]
                await self._connection.client.publish(self._subject, json.dumps(body).encode(), reply)
            except (nats.errors.Error, OSError) as error:
                self._connection.report_failure("pulling", error)
                self._credit.end_request(request.inbox)
                return False
        return True

    async def end_silent_requests(self, now: float, *, suspended: bool) -> None:
        """End the requests without a sign of life, and replace their inboxes; where nothing was read, excuse them."""
        if suspended:
            self._credit.excuse_silence(now)
        for inbox in self._credit.silent(now):
            self._credit.end_request(inbox)
            if old := self._inboxes.pop(inbox.number, None):
                self._buffer.keep_old_inbox(old[1], now + _VERY_LATE)
                await nats_internals.end_interest(self._connection.client, old[1])
            self._may_request(self)

    async def end_interest(self) -> None:
        """Let the server answer no open request any more; what is on its way is still read."""
        for inbox in self._credit.inboxes:
            if inbox.outstanding and inbox.number in self._inboxes:
                self._ending.append(inbox)
                _, subscription = self._inboxes[inbox.number]
                await nats_internals.end_interest(self._connection.client, subscription)

    def return_credit(self, now: float) -> None:
        """Return the credit that brought no message, after what was on its way has arrived; replace the inboxes."""
        for inbox in self._ending:
            if old := self._inboxes.pop(inbox.number, None):
                self._buffer.keep_old_inbox(old[1], now + _LATE)
        self._ending.clear()
        self.recalled = False
        self._buffer.put(CreditReturned(self.flow, self._credit.take_back()))

    def close(self, until: float) -> None:
        """Request nothing more; what arrives late is read until then."""
        self.unbind()
        self._leave_inboxes(until)

    def _leave_inboxes(self, until: float) -> None:
        for _, subscription in self._inboxes.values():
            self._buffer.keep_old_inbox(subscription, until)
        self._inboxes.clear()

    async def _subscribe(self, inbox: PullInbox) -> None:
        subject = self._connection.client.new_inbox()
        on_message = partial(self._on_message, inbox, subject)
        subscription = await nats_internals.listen(self._connection.client, subject, on_message)
        self._inboxes[inbox.number] = subject, subscription

    def _on_message(self, inbox: PullInbox, subject: str, message: Msg) -> None:
        now = trio.current_time()
        current = (here := self._inboxes.get(inbox.number)) is not None and here[0] == subject
        reply = message.reply
        if not reply:
            if current:
                self._on_status(inbox, message, now)
            return
        self._credit.received(inbox if current else None, now)
        try:
            identity, num_delivered, num_pending = parse_ack_subject(reply)
        except ValueError as error:
            self._connection.report_failure("reading a delivery", error)
            self.add_credit(1)
            self._may_request(self)
            return
        token = self._outbox.token(reply)
        self._buffer.deliver(
            self,
            reply,
            Delivery(identity, token, num_delivered, now, message.subject, message.data, self.flow, num_pending),
        )
        if not inbox.outstanding:
            self._may_request(self)

    def _on_status(self, inbox: PullInbox, message: Msg, now: float) -> None:
        status = parse_status(message.headers)
        if status is None or status.heartbeat:
            self._credit.sign_of_life(inbox, now)
            return
        self._credit.end_request(inbox)
        if status.rejected:
            self._no_requests_until = now + _AFTER_REJECTION
        if status.consumer_gone:
            self._lost(self)
        elif status.rejected and status.code != 409:
            self._connection.report_failure("pulling", f"{status.code} {status.description}")
        self._may_request(self)
