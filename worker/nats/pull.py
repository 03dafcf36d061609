"""The pull requests of one flow, on plain subscriptions, and what the server answers to them.

Limits that an operator has set on the consumer, the account or the server are kept: a request that exceeds one is sent
again within it. Other refusals are repeated, and reported.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Protocol

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..model import CreditReturned, Delivery, Notice
from . import nats_internals
from .connection import Connection
from .credit import EXPIRES, HEARTBEAT, SILENCE, Credit, PullInbox
from .outbox import Outbox
from .pull_messages import Status, is_stripped, parse_ack_subject, parse_status

LATE = 5.0
"""Seconds that an inbox is read after its interest ended: what comes through another server of a cluster may arrive
after the answer of the connected one."""
_VERY_LATE = 60.0
"""Seconds after a silence: a server that was suspended continues where it was."""
_AFTER_REJECTION = 0.25
"""Seconds without a new request after one that the server rejected."""
_TOO_MANY = "its max_waiting is too small for so many workers"
_UNANSWERED = f"no answer for {SILENCE:g} s; where NATS is well, {_TOO_MANY}"
"""A server drops requests above a consumer's max_waiting without an answer (measured, nats-server 2.15.1)."""
_SHORT = 1.0
"""Seconds of a consumer's max_expires below which there is a wait after each request: they would end all the time."""
_WAITING = 2.0
"""Seconds without a new request while as many wait at the server as the consumer's max_waiting allows, one of this
flow's among them."""


class _Consumer(Protocol):
    """The part that a pull needs of :class:`worker.nats.pull_consumer.PullConsumer`."""

    connection: Connection
    outbox: Outbox
    old_inboxes: list[tuple[float, Subscription]]

    def may_request(self, pull: Pull) -> None: ...

    def notify(self, notice: Notice) -> None: ...

    def deliver(self, pull: Pull, reply: str, delivery: Delivery) -> None: ...

    def on_lost(self, pull: Pull) -> None: ...

    def on_stripped(self, pull: Pull, reply: str, delivery: Delivery) -> None: ...


class Pull:
    """The pulls of one flow. What arrives is passed to *consumer*."""

    def __init__(self, flow: str, credit: Credit, consumer: _Consumer) -> None:
        self.flow, self.credit = flow, credit
        self._consumer, self._connection, self._outbox = consumer, consumer.connection, consumer.outbox
        self._max_batch, self._expires = credit.max_batch, EXPIRES
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
        self.held = False
        """Its consumer cannot be used now, so nothing is requested."""
        self.refusal: tuple[float, str] | None = None
        """Since when the server has refused every request, and why; None while it accepts them."""

    @property
    def bound(self) -> bool:
        """Whether there is a consumer to pull from, as far as is known."""
        return bool(self._subject)

    @property
    def consumer(self) -> str:
        """The name of the consumer; empty where none is known."""
        return self._subject.rpartition(".")[2]

    def bind(self, subject: str) -> None:
        """Pull from a consumer, by requests that are published on *subject*."""
        self._subject, self.held = subject, False
        self._consumer.may_request(self)

    def unbind(self) -> None:
        """Expect nothing more of open requests, because the consumer does not exist."""
        self._subject, self.refusal = "", None
        for inbox in self.credit.inboxes:
            self.credit.end_request(inbox)

    def leave_inboxes(self, until: float) -> None:
        """Expect nothing more of open requests; what they bring nevertheless is read until then."""
        for inbox in self.credit.inboxes:
            self._leave(inbox, until)

    def keep_limits(self, max_batch: int, max_expires: float, max_waiting: int) -> None:
        """Send requests for so many messages and so many seconds at most, and so many at once; 0 is no limit."""
        self.credit.max_requests = min(len(self.credit.inboxes), max_waiting or len(self.credit.inboxes))
        self.credit.max_batch = min(self._max_batch, max_batch or self._max_batch)
        self._expires = min(EXPIRES, max_expires or EXPIRES)

    async def send_requests(self, now: float) -> bool:
        """Send the requests that there are. Return False where some have to wait."""
        if self.recalled or self.held or not self._subject:
            return True
        if now < self._no_requests_until:
            return False
        while not self.held and (inbox := self.credit.next_request(now)):
            batch, client, inbox.expires = inbox.outstanding, self._connection.client, self._expires
            heartbeat = min(HEARTBEAT, self._expires / 2)
            body = {"batch": batch, "expires": round(self._expires * 1e9), "idle_heartbeat": round(heartbeat * 1e9)}
            try:
                if inbox not in self._inboxes:
                    on_message = partial(self._on_message, inbox)
                    self._inboxes[inbox] = await nats_internals.listen(client, client.new_inbox(), on_message)
                    if not inbox.outstanding:  # the connection was lost since
                        continue
                await client.publish(self._subject, json.dumps(body).encode(), self._inboxes[inbox].subject)
            except (nats.errors.Error, OSError) as error:
                self._connection.report_failure("pulling", error)
                self.credit.end_request(inbox)
                return False
        return True

    async def end_silent_requests(self, now: float) -> None:
        """End the requests without a sign of life, and replace their inboxes."""
        silent = self.credit.silent(now)
        if silent and self.credit.outstanding == sum(inbox.outstanding for inbox in silent):
            self.refusal = self.refusal or (now - SILENCE, _UNANSWERED)
        for inbox in silent:
            if old := self._leave(inbox, now + _VERY_LATE):
                await nats_internals.end_interest(self._connection.client, old)
            self._consumer.may_request(self)

    async def end_interest(self) -> None:
        """Let the server answer no open request any more; what is on its way is still read."""
        for inbox in self.credit.inboxes:
            if inbox.outstanding and (subscription := self._inboxes.get(inbox)):
                self._ending.append(inbox)
                await nats_internals.end_interest(self._connection.client, subscription)

    def return_credit(self, now: float) -> None:
        """Return the credit that brought no message, after what was on its way has arrived; replace the inboxes."""
        self.leave_ended(now)
        self.recalled = False
        self._consumer.notify(CreditReturned(self.flow, self.credit.take_back()))

    def leave_ended(self, now: float) -> None:
        """Expect nothing more of the requests whose interest has ended; replace their inboxes."""
        for inbox in self._ending:
            self._leave(inbox, now + LATE)
        self._ending.clear()

    def _leave(self, inbox: PullInbox, until: float) -> Subscription | None:
        """End the request of an inbox; replace one that has been used, and return its subscription."""
        self.credit.end_request(inbox)
        if subscription := self._inboxes.pop(inbox, None):
            self.credit.replace(inbox)
            self._consumer.old_inboxes.append((until, subscription))
        return subscription

    def _on_message(self, inbox: PullInbox, message: Msg) -> None:
        now = trio.current_time()
        if not (reply := message.reply):
            if inbox in self._inboxes:  # it has not been replaced
                self._on_status(inbox, message, now)
            return
        self.credit.received(inbox, now)
        self.refusal = None
        try:
            identity, num_delivered, num_pending = parse_ack_subject(reply)
        except ValueError as error:
            self._connection.report_failure("reading a delivery", error)
            self.credit.add(1)
            self._consumer.may_request(self)
            return
        token = self._outbox.epoch + reply
        delivery = Delivery(identity, token, num_delivered, now, message.subject, message.data, self.flow, num_pending)
        if not message.data and is_stripped(message.headers):
            self._consumer.on_stripped(self, reply, delivery)
        else:
            self._consumer.deliver(self, reply, delivery)
        if not inbox.outstanding:
            self._consumer.may_request(self)

    def _on_status(self, inbox: PullInbox, message: Msg, now: float) -> None:
        status = parse_status(message.headers)
        if status is None or status.code == 100:
            inbox.last_sign, self.refusal = now, None
            return
        within_limits = self._keep_limits(inbox, status)
        self.credit.end_request(inbox)
        if status.consumer_gone:
            self._no_requests_until = now + _AFTER_REJECTION
            self._consumer.on_lost(self)
        elif not status.rejected:
            self.refusal = None
            if self._expires < _SHORT:
                self._no_requests_until = now + _AFTER_REJECTION
        elif within_limits:
            self._on_refused(status, now)
        self._consumer.may_request(self)

    def _keep_limits(self, inbox: PullInbox, status: Status) -> bool:
        """Keep the limits that a request exceeded from now on, and return whether it exceeded none."""
        max_batch, max_expires = status.limits
        if 0 < max_batch < inbox.outstanding:
            self.credit.max_batch = min(self.credit.max_batch, max_batch)
            return False
        if 0 < max_expires < inbox.expires:
            self._expires = min(self._expires, max_expires)
            return False
        return True

    def _on_refused(self, status: Status, now: float) -> None:
        text = f"{status.code} {status.description}" + (f"; {_TOO_MANY}" if status.waiting else "")
        if status.waiting and self.credit.outstanding:
            self._no_requests_until = now + _WAITING
            return
        self._no_requests_until = now + _AFTER_REJECTION
        if not self.credit.outstanding:
            since = self.refusal[0] if self.refusal else now
            self.refusal = since, text
        if not status.passing:
            self._connection.report_failure("pulling", text)
