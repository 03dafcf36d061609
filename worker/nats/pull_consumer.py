"""All flows of one worker, their pulls on plain subscriptions, and the task that sends for them.

A callback stamps each delivery and puts it into a buffer for Trio; :mod:`worker.nats.credit` decides which requests to
send. The cost grows with the flows that have credit, not with the flows that exist. The reasons against nats-py's
``fetch`` are in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf

import nats.errors
import trio
from nats.aio.subscription import Subscription
from trio_asyncio import aio_as_trio

from ..model import CALLBACKS, Delivery, FlowEnded, Notice
from ..policy.quota import is_token_flow
from .connection import Connection
from .credit import DEFAULT_BATCH, HEARTBEAT, MAX_REQUESTS, MAX_REQUESTS_OF_MANY, Credit
from .layout import ConsumerSet
from .outbox import Outbox
from .pull import LATE, Pull
from .pull_messages import consumer_of

_STOP = 2.0
"""Seconds that stopping waits for what is already on its way."""
_REFUSED = 5.0
"""Seconds for which the server refuses every request of a flow until that is a fault: an election takes less."""
_POSTPONED = 30.0
"""Seconds after which a message that a retired consumer holds is delivered again, so that its end is seen."""


class PullConsumer:
    """See :class:`worker.ports.Consumer`.

    *create* is called with a flow that has credit and no consumer, *lost* with a flow whose consumer is gone, as the
    server reports. *stripped* gets each delivery that seems to be without its payload. *stopping* is called when it
    stops, on the asyncio side.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        *,
        create: Callable[[str], None],
        lost: Callable[[str], None],
        stripped: Callable[[Pull, str, Delivery], None],
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
        self.on_stripped = stripped
        self._buffer: list[Delivery | Notice] = []
        """Deliveries and notices for Trio, bounded by credit."""
        self._receivers = trio.lowlevel.ParkingLot()
        self._pulls: dict[str, Pull] = {}
        self._to_request: dict[Pull, None] = {}
        """Pulls that may have a request to send."""
        self._open: dict[Pull, None] = {}
        """Pulls that may have an open request."""
        self._recalls: list[Pull] = []
        self._holds: list[Pull] = []
        """Pulls whose open requests are to be cancelled, because their consumer cannot be used now."""
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
                    if self._recalls or self._holds:
                        recalled, self._recalls = self._recalls, []
                        held, self._holds = self._holds, []
                        tasks.create_task(self._take_back(recalled, held))
                    await self._send_requests()

    def notify(self, notice: Notice) -> None:
        """Put a notice behind what was delivered before."""
        if not self.stopped:
            self._buffer.append(notice)
            self._receivers.unpark()

    def deliver(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        """Add a delivery; but give back what a retired consumer holds: that one may deliver it, too."""
        held = self.consumers.retired and self.consumers.is_held(delivery.subject, delivery.id[0], consumer_of(reply))
        if held and not is_token_flow(pull.flow) and pull.flow != CALLBACKS:
            self.outbox.postpone(reply, _POSTPONED)
            pull.credit.add(1)
        else:
            self._buffer.append(delivery)
            self._receivers.unpark()

    def hold(self, pull: Pull, held: bool) -> None:
        """Cancel the open requests of a flow, whose credit stays, and send none; or send them again."""
        if held and not pull.held:
            self._holds.append(pull)
        pull.held = held
        self.may_request(pull)

    def refusal(self, now: float) -> str:
        """Return why the server has refused all requests of some flow for a while; empty where it has not."""
        for pull in self._pulls.values():
            if pull.refusal and now - pull.refusal[0] > _REFUSED:
                return f"requests to the consumer {pull.consumer}: {pull.refusal[1]}"
        return ""

    @property
    def bound(self) -> list[Pull]:
        """The pulls that have a consumer, as far as is known."""
        return [pull for pull in self._pulls.values() if pull.bound]

    def find(self, flow: str) -> Pull | None:
        """Return the pulls of a flow, if there are some."""
        return self._pulls.get(flow)

    def open(self, flow: str) -> Pull:
        """Return the pulls of a flow, which exist from now on."""
        if (pull := self._pulls.get(flow)) is None:
            many, debts = MAX_REQUESTS_OF_MANY if flow else MAX_REQUESTS, not is_token_flow(flow) and flow != CALLBACKS
            credit = Credit(self._max_batch, many, debts=debts)
            pull = self._pulls[flow] = Pull(flow, credit, self)
        return pull

    def close(self, flow: str) -> None:
        """End a flow."""
        if pull := self._pulls.pop(flow, None):
            self._to_request.pop(pull, None)
            self._open.pop(pull, None)
            pull.unbind()
            pull.leave_inboxes(trio.current_time() + LATE)
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

    async def _take_back(self, recalled: list[Pull], held: list[Pull]) -> None:
        await self._end_interest([*recalled, *held])
        for pull in held:
            pull.leave_ended(trio.current_time())
        for pull in recalled:
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
