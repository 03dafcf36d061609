"""The pulls of one flow, on plain subscriptions.

A callback stamps each delivery and puts it into a buffer for Trio; :mod:`worker.nats.credit` decides which requests to
send. docs/architecture.md has the reasons against nats-py's ``fetch``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial

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

LATE = 5.0
"""Seconds that an inbox is read after its interest ended: what comes through another server of a cluster may arrive
after the answer of the connected one."""
_VERY_LATE = 60.0
"""Seconds after a silence: a server that was suspended continues where it was."""
_AFTER_REJECTION = 0.25
"""Seconds without a new request after one that the server rejected."""
_POSTPONED = 30.0
"""Seconds after which a message that a retired consumer holds is delivered again, so that its end is seen."""


class DeliveryBuffer:
    """Deliveries and notices for Trio, bounded by credit; and old inboxes, for deliveries that arrive late."""

    def __init__(self, outbox: Outbox) -> None:
        self.consumers = ConsumerSet()
        """The consumers of the stream, as last observed."""
        self._outbox = outbox
        self._buffer: list[Delivery | Notice] = []
        self._receivers = trio.lowlevel.ParkingLot()
        self._old_inboxes: list[tuple[float, Subscription]] = []

    def put(self, notice: Notice) -> None:
        """Add a notice."""
        self._buffer.append(notice)
        self._receivers.unpark()

    def deliver(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        """Add a delivery; but give back what a retired consumer holds: that one may deliver it, too."""
        held = self.consumers.retired and self.consumers.is_held(delivery.subject, delivery.id[0], consumer_of(reply))
        if held and not is_token_flow(pull.flow):
            self._outbox.postpone(reply, _POSTPONED)
            pull.credit.add(1)
        else:
            self._buffer.append(delivery)
            self._receivers.unpark()

    async def wait(self) -> None:
        """Return when the buffer has something."""
        while not self._buffer:
            await self._receivers.park()

    def take_all(self) -> list[Delivery | Notice]:
        """Empty the buffer."""
        taken, self._buffer = self._buffer, []
        return taken

    def keep_old_inbox(self, subscription: Subscription, until: float) -> None:
        """Read an old inbox until then."""
        self._old_inboxes.append((until, subscription))

    async def close_old_inboxes(self, now: float) -> None:
        """Unsubscribe from the old inboxes whose time is over."""
        closed = [subscription for until, subscription in self._old_inboxes if until <= now]
        self._old_inboxes = [(until, subscription) for until, subscription in self._old_inboxes if until > now]
        for subscription in closed:
            with suppress(nats.errors.Error):  # the connection is closed, or will be
                await subscription.unsubscribe()


class Pull:
    """The pulls of one flow.

    *lost* is called when the server reports that the consumer does not exist, *may_request* when there may be a request
    to send.
    """

    def __init__(
        self,
        flow: str,
        credit: Credit,
        connection: Connection,
        outbox: Outbox,
        buffer: DeliveryBuffer,
        *,
        lost: Callable[[Pull], None],
        may_request: Callable[[Pull], None],
    ) -> None:
        self.flow, self.credit = flow, credit
        self._connection, self._outbox, self._buffer = connection, outbox, buffer
        self._lost, self._may_request = lost, may_request
        self._subject = ""
        """The subject of requests. Empty where no consumer is known."""
        self._inboxes: dict[PullInbox, Subscription] = {}
        """The inboxes that have been used."""
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

    def bind(self, subject: str) -> None:
        """Pull from a consumer, by requests that are published on *subject*."""
        self._subject = subject
        self._may_request(self)

    def unbind(self) -> None:
        """Expect nothing more of open requests, because the consumer does not exist."""
        self._subject = ""
        for inbox in self.credit.inboxes:
            self.credit.end_request(inbox)

    def leave_inboxes(self, until: float) -> None:
        """Expect nothing more of open requests; what they bring nevertheless is read until then."""
        for inbox in self.credit.inboxes:
            self.credit.end_request(inbox)
            self._leave(inbox, until)

    async def send_requests(self, now: float) -> bool:
        """Send the requests that there are. Return False where some have to wait."""
        if self.recalled or not self._subject:
            return True
        if now < self._no_requests_until:
            return False
        while inbox := self.credit.next_request(now):
            batch, client = inbox.outstanding, self._connection.client
            body = {"batch": batch, "expires": round(EXPIRES * 1e9), "idle_heartbeat": round(HEARTBEAT * 1e9)}
            try:
                if inbox not in self._inboxes:
                    on_message = partial(self._on_message, inbox)
                    self._inboxes[inbox] = await nats_internals.listen(client, client.new_inbox(), on_message)
                await client.publish(self._subject, json.dumps(body).encode(), self._inboxes[inbox].subject)
            except (nats.errors.Error, OSError) as error:
                self._connection.report_failure("pulling", error)
                self.credit.end_request(inbox)
                return False
        return True

    async def end_silent_requests(self, now: float, *, suspended: bool) -> None:
        """End the requests without a sign of life, and replace their inboxes; where nothing was read, excuse them."""
        if suspended:
            self.credit.excuse_silence(now)
        for inbox in self.credit.silent(now):
            self.credit.end_request(inbox)
            if old := self._leave(inbox, now + _VERY_LATE):
                await nats_internals.end_interest(self._connection.client, old)
            self._may_request(self)

    async def end_interest(self) -> None:
        """Let the server answer no open request any more; what is on its way is still read."""
        for inbox in self.credit.inboxes:
            if inbox.outstanding and (subscription := self._inboxes.get(inbox)):
                self._ending.append(inbox)
                await nats_internals.end_interest(self._connection.client, subscription)

    def return_credit(self, now: float) -> None:
        """Return the credit that brought no message, after what was on its way has arrived; replace the inboxes."""
        for inbox in self._ending:
            self._leave(inbox, now + LATE)
        self._ending.clear()
        self.recalled = False
        self._buffer.put(CreditReturned(self.flow, self.credit.take_back()))

    def _leave(self, inbox: PullInbox, until: float) -> Subscription | None:
        """Replace an inbox that has been used, and return its subscription."""
        if subscription := self._inboxes.pop(inbox, None):
            self.credit.replace(inbox)
            self._buffer.keep_old_inbox(subscription, until)
        return subscription

    def _on_message(self, inbox: PullInbox, message: Msg) -> None:
        now = trio.current_time()
        if not (reply := message.reply):
            if inbox in self._inboxes:  # it has not been replaced
                self._on_status(inbox, message, now)
            return
        self.credit.received(inbox, now)
        try:
            identity, num_delivered, num_pending = parse_ack_subject(reply)
        except ValueError as error:
            self._connection.report_failure("reading a delivery", error)
            self.credit.add(1)
            self._may_request(self)
            return
        token = self._outbox.token(reply)
        delivery = Delivery(identity, token, num_delivered, now, message.subject, message.data, self.flow, num_pending)
        self._buffer.deliver(self, reply, delivery)
        if not inbox.outstanding:
            self._may_request(self)

    def _on_status(self, inbox: PullInbox, message: Msg, now: float) -> None:
        status = parse_status(message.headers)
        if status is None or status.heartbeat:
            inbox.last_sign = now
            return
        self.credit.end_request(inbox)
        if status.rejected:
            self._no_requests_until = now + _AFTER_REJECTION
        if status.consumer_gone:
            self._lost(self)
        elif status.rejected and status.code != 409:
            self._connection.report_failure("pulling", f"{status.code} {status.description}")
        self._may_request(self)
