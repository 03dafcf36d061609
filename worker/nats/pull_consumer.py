"""All flows of one worker, their pulls on plain subscriptions, and the task that sends for them.

A callback stamps each delivery and puts it into a buffer for Trio; :mod:`worker.nats.credit` decides which requests to
send. The cost grows with the flows that have credit, not with the flows that exist. The reasons against nats-py's
``fetch`` are in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from trio_asyncio import aio_as_trio

from ..model import CreditReturned, Delivery, FlowEnded, Notice
from ..policy.quota import is_token_flow
from . import nats_internals
from .connection import Connection
from .credit import DEFAULT_BATCH, EXPIRES, HEARTBEAT, MAX_REQUESTS, MAX_REQUESTS_OF_MANY, Credit, PullInbox
from .layout import ConsumerSet
from .outbox import Outbox
from .wire import consumer_of, parse_ack_subject, parse_status

_STOP = 2.0
"""Seconds that stopping waits for what is already on its way."""
_LATE = 5.0
"""Seconds that an inbox is read after its interest ended: what comes through another server of a cluster may arrive
after the answer of the connected one."""
_VERY_LATE = 60.0
"""Seconds after a silence: a server that was suspended continues where it was."""
_AFTER_REJECTION = 0.25
"""Seconds without a new request after one that the server rejected."""
_POSTPONED = 30.0
"""Seconds after which a message that a retired consumer holds is delivered again, so that its end is seen."""


class Pull:
    """The pulls of one flow. What arrives is passed to *consumer*."""

    def __init__(self, flow: str, credit: Credit, consumer: PullConsumer) -> None:
        self.flow, self.credit = flow, credit
        self._consumer, self._connection, self._outbox = consumer, consumer.connection, consumer.outbox
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
        self._consumer.may_request(self)

    def unbind(self) -> None:
        """Expect nothing more of open requests, because the consumer does not exist."""
        self._subject = ""
        for inbox in self.credit.inboxes:
            self.credit.end_request(inbox)

    def leave_inboxes(self, until: float) -> None:
        """Expect nothing more of open requests; what they bring nevertheless is read until then."""
        for inbox in self.credit.inboxes:
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

    async def end_silent_requests(self, now: float) -> None:
        """End the requests without a sign of life, and replace their inboxes."""
        for inbox in self.credit.silent(now):
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
        for inbox in self._ending:
            self._leave(inbox, now + _LATE)
        self._ending.clear()
        self.recalled = False
        self._consumer.notify(CreditReturned(self.flow, self.credit.take_back()))

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
        try:
            identity, num_delivered, num_pending = parse_ack_subject(reply)
        except ValueError as error:
            self._connection.report_failure("reading a delivery", error)
            self.credit.add(1)
            self._consumer.may_request(self)
            return
        token = self._outbox.epoch + reply
        delivery = Delivery(identity, token, num_delivered, now, message.subject, message.data, self.flow, num_pending)
        self._consumer.deliver(self, reply, delivery)
        if not inbox.outstanding:
            self._consumer.may_request(self)

    def _on_status(self, inbox: PullInbox, message: Msg, now: float) -> None:
        status = parse_status(message.headers)
        if status is None or status.code == 100:
            inbox.last_sign = now
            return
        self.credit.end_request(inbox)
        if status.rejected:
            self._no_requests_until = now + _AFTER_REJECTION
        if status.consumer_gone:
            self._consumer.on_lost(self)
        elif status.rejected and status.code != 409:
            self._connection.report_failure("pulling", f"{status.code} {status.description}")
        self._consumer.may_request(self)


class PullConsumer:
    """See :class:`worker.ports.Consumer`.

    *create* is called with a flow that has credit and no consumer, *lost* with a flow whose consumer is gone, as the
    server reports. *stopping* is called when it stops, on the asyncio side.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        *,
        create: Callable[[str], None],
        lost: Callable[[str], None],
        stopping: Callable[[], Awaitable[None]] | None = None,
        max_batch: int = DEFAULT_BATCH,
    ) -> None:
        self.ack_wait = 0.0
        self.stopped = False
        self.consumers = ConsumerSet()
        """The consumers of the stream, as last observed."""
        self.old_inboxes: list[tuple[float, Subscription]] = []
        """Replaced inboxes, and until when each is read for deliveries that arrive late."""
        self.connection, self.outbox = connection, outbox
        self._requesting = False
        """Whether no request of an earlier connection can be answered any more, so that new ones are sent."""
        self._create, self._lost, self._stopping, self._max_batch = create, lost, stopping, max_batch
        self._buffer: list[Delivery | Notice] = []
        """Deliveries and notices for Trio, bounded by credit."""
        self._receivers = trio.lowlevel.ParkingLot()
        self._pulls: dict[str, Pull] = {}
        self._to_request: dict[Pull, None] = {}
        """Pulls that may have a request to send."""
        self._open: dict[Pull, None] = {}
        """Pulls that may have an open request."""
        self._recalls: list[Pull] = []
        self._ended: set[str] = set()
        """Flows whose end is in the buffer: until it is received, credit for them is ignored."""
        self._checked_at = 0.0

    # The Trio side.

    def add_credit(self, count: int, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.add_credit`."""
        if flow in self._ended or self.stopped:
            return
        pull = self.open(flow)
        pull.credit.add(count)
        if pull.bound:
            self.may_request(pull)
        elif not pull.creating:
            self._create(flow)

    def recall_credit(self, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.recall_credit`."""
        if flow in self._ended or self.stopped:
            return
        pull = self.open(flow)
        if pull.credit.outstanding and self.connection.up:
            pull.recalled = True
            self._recalls.append(pull)
            self.outbox.wake()
        else:
            pull.return_credit(trio.current_time())

    async def receive(self) -> Sequence[Delivery | Notice]:
        """See :meth:`worker.ports.Consumer.receive`."""
        while not self._buffer:
            await self._receivers.park()
        self._ended.clear()
        return self.take_all()

    async def stop(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.stop`."""
        self.stopped = True
        with trio.move_on_after(_STOP):
            await aio_as_trio(self._stop)()
        return [each for each in self.take_all() if isinstance(each, Delivery)]

    def take_all(self) -> list[Delivery | Notice]:
        """Empty the buffer."""
        taken, self._buffer = self._buffer, []
        return taken

    # The asyncio side.

    async def pump(self) -> None:
        """Send what there is to send at each wake-up, until cancelled: all settlements, then requests.

        One task does both, because each more would cost another pass of the event loop per message.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self.outbox.send()
                if self.connection.up and not self.stopped:
                    if self._recalls:
                        recalled, self._recalls = self._recalls, []
                        tasks.create_task(self._take_back(recalled))
                    await self._send_requests()

    def notify(self, notice: Notice) -> None:
        """Put a notice behind what was delivered before."""
        if not self.stopped:
            self._buffer.append(notice)
            self._receivers.unpark()

    def deliver(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        """Add a delivery; but give back what a retired consumer holds: that one may deliver it, too."""
        held = self.consumers.retired and self.consumers.is_held(delivery.subject, delivery.id[0], consumer_of(reply))
        if held and not is_token_flow(pull.flow):
            self.outbox.postpone(reply, _POSTPONED)
            pull.credit.add(1)
        else:
            self._buffer.append(delivery)
            self._receivers.unpark()

    def find(self, flow: str) -> Pull | None:
        """Return the pulls of a flow, if there are some."""
        return self._pulls.get(flow)

    def open(self, flow: str) -> Pull:
        """Return the pulls of a flow, which exist from now on."""
        if (pull := self._pulls.get(flow)) is None:
            credit = Credit(self._max_batch, MAX_REQUESTS_OF_MANY if flow else MAX_REQUESTS)
            pull = self._pulls[flow] = Pull(flow, credit, self)
        return pull

    def close(self, flow: str) -> None:
        """End a flow."""
        if pull := self._pulls.pop(flow, None):
            self._to_request.pop(pull, None)
            self._open.pop(pull, None)
            pull.unbind()
            pull.leave_inboxes(trio.current_time() + _LATE)
        self._ended.add(flow)
        self.notify(FlowEnded(flow))

    async def check(self, now: float) -> None:
        """End silent requests and close old inboxes; to be called a few times a second."""
        suspended = now - self._checked_at > 2 * HEARTBEAT  # this process was, or its loop was starved
        self._checked_at = now
        if not self.connection.up:
            return
        for pull in [*self._open]:
            if suspended:
                pull.credit.excuse_silence(now)
            await pull.end_silent_requests(now)
            if not pull.credit.outstanding:
                self._open.pop(pull, None)
        await self._close_old_inboxes(now)

    async def request_again(self) -> None:
        """Send requests over a new connection, into new inboxes: no request of an earlier one may be answered there."""
        if not self._requesting:
            await self._close_old_inboxes(inf)
        self._requesting = True
        for pull in self._pulls.values():
            if pull.credit.unrequested > 0 and pull.bound:
                self.may_request(pull)
            elif pull.credit.unrequested > 0 and not pull.creating:
                self._create(pull.flow)

    def connection_changed(self, up: bool) -> None:
        """Expect nothing more of open requests, once the connection is lost."""
        if not up:
            self._requesting = False
            for pull in self._pulls.values():
                pull.leave_inboxes(-inf)
            self._open.clear()

    def may_request(self, pull: Pull) -> None:
        """Look soon whether a flow has requests to send."""
        self._to_request[pull] = None
        self.outbox.wake()

    def on_lost(self, pull: Pull) -> None:
        """Unbind a flow, because the server reports that its consumer does not exist."""
        if self._pulls.get(pull.flow) is pull and pull.bound:
            pull.unbind()
            self._lost(pull.flow)

    async def _close_old_inboxes(self, now: float) -> None:
        closed = [subscription for until, subscription in self.old_inboxes if until <= now]
        self.old_inboxes = [(until, subscription) for until, subscription in self.old_inboxes if until > now]
        for subscription in closed:
            with suppress(nats.errors.Error):  # the connection is closed, or will be
                await subscription.unsubscribe()

    async def _send_requests(self) -> None:
        if self.outbox.crowded or not self._requesting:
            return
        pulls, self._to_request = self._to_request, {}
        now = trio.current_time()
        for pull in pulls:
            if not await pull.send_requests(now):
                self._to_request[pull] = None
            if pull.credit.outstanding:
                self._open[pull] = None

    async def _take_back(self, pulls: list[Pull]) -> None:
        await self._end_interest(pulls)
        for pull in pulls:
            if self._pulls.get(pull.flow) is pull:
                pull.return_credit(trio.current_time())

    async def _stop(self) -> None:
        if self._stopping and self.connection.up:
            await self._stopping()
        await self._end_interest([*self._open])

    async def _end_interest(self, pulls: list[Pull]) -> None:
        with suppress(nats.errors.Error, OSError):  # nothing arrives any more over a connection that is lost
            if self.connection.up:
                for pull in pulls:
                    await pull.end_interest()
                await self.connection.round_trip()
