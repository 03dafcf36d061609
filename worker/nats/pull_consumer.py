"""All flows of one worker, and the task that sends for them.

Its cost grows with the flows that have credit, not with the flows that exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf

import nats.errors
import trio
from trio_asyncio import aio_as_trio

from ..model import Delivery, FlowEnded, Notice
from .connection import Connection
from .credit import DEFAULT_BATCH, HEARTBEAT, MAX_REQUESTS, MAX_REQUESTS_OF_MANY, Credit
from .outbox import Outbox
from .pull import LATE, DeliveryBuffer, Pull

_STOP = 2.0
"""Seconds that stopping waits for what is already on its way."""


class PullConsumer:
    """See :class:`worker.ports.Consumer`.

    *create* is called with a flow that has credit and no consumer, *lost* with a flow whose consumer, as the server
    reports, does not exist, and *stopping* when it stops, on the asyncio side.
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
        self.buffer = DeliveryBuffer(outbox)
        self._requesting = False
        """Whether no request of an earlier connection can be answered any more, so that new ones are sent."""
        self._connection, self._outbox, self._max_batch = connection, outbox, max_batch
        self._create, self._lost, self._stopping = create, lost, stopping
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
            self._may_request(pull)
        elif not pull.creating:
            self._create(flow)

    def recall_credit(self, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.recall_credit`."""
        if flow in self._ended or self.stopped:
            return
        pull = self.open(flow)
        if pull.credit.outstanding and self._connection.up:
            pull.recalled = True
            self._recalls.append(pull)
            self._outbox.wake()
        else:
            pull.return_credit(trio.current_time())

    async def receive(self) -> Sequence[Delivery | Notice]:
        """See :meth:`worker.ports.Consumer.receive`."""
        await self.buffer.wait()
        self._ended.clear()
        return self.buffer.take_all()

    async def stop(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.stop`."""
        self.stopped = True
        with trio.move_on_after(_STOP):
            await aio_as_trio(self._stop)()
        return [each for each in self.buffer.take_all() if isinstance(each, Delivery)]

    # The asyncio side.

    async def pump(self) -> None:
        """Send what there is to send at each wake-up, until cancelled: all settlements, then requests.

        One task does both, because each more would cost another pass of the event loop per message.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._outbox.send()
                if self._connection.up and not self.stopped:
                    if self._recalls:
                        recalled, self._recalls = self._recalls, []
                        tasks.create_task(self._take_back(recalled))
                    await self._send_requests()

    def notify(self, notice: Notice) -> None:
        """Put a notice behind what was delivered before."""
        if not self.stopped:
            self.buffer.put(notice)

    def find(self, flow: str) -> Pull | None:
        """Return the pulls of a flow, if there are some."""
        return self._pulls.get(flow)

    def open(self, flow: str) -> Pull:
        """Return the pulls of a flow, which exist from now on."""
        if (pull := self._pulls.get(flow)) is None:
            pull = self._pulls[flow] = Pull(
                flow,
                Credit(self._max_batch, MAX_REQUESTS_OF_MANY if flow else MAX_REQUESTS),
                self._connection,
                self._outbox,
                self.buffer,
                lost=self._on_lost,
                may_request=self._may_request,
            )
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
        if not self._connection.up:
            return
        for pull in [*self._open]:
            await pull.end_silent_requests(now, suspended=suspended)
            if not pull.credit.outstanding:
                self._open.pop(pull, None)
        await self.buffer.close_old_inboxes(now)

    async def request_again(self) -> None:
        """Send requests over a new connection, into new inboxes: no request of an earlier one may be answered there."""
        if not self._requesting:
            await self.buffer.close_old_inboxes(inf)
        self._requesting = True
        for pull in self._pulls.values():
            if pull.credit.wanted and pull.bound:
                self._may_request(pull)
            elif pull.credit.wanted and not pull.creating:
                self._create(pull.flow)

    def connection_changed(self, up: bool) -> None:
        """Expect nothing more of open requests, once the connection is lost."""
        if not up:
            self._requesting = False
            for pull in self._pulls.values():
                pull.leave_inboxes(-inf)
            self._open.clear()

    def _may_request(self, pull: Pull) -> None:
        self._to_request[pull] = None
        self._outbox.wake()

    def _on_lost(self, pull: Pull) -> None:
        if self._pulls.get(pull.flow) is pull and pull.bound:
            pull.unbind()
            self._lost(pull.flow)

    async def _send_requests(self) -> None:
        if self._outbox.crowded or not self._requesting:
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
        if self._stopping and self._connection.up:
            await self._stopping()
        await self._end_interest([*self._open])

    async def _end_interest(self, pulls: list[Pull]) -> None:
        with suppress(nats.errors.Error, OSError):  # nothing arrives any more over a connection that is lost
            if self._connection.up:
                for pull in pulls:
                    await pull.end_interest()
                await self._connection.round_trip()
