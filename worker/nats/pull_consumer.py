"""All flows of one worker: who may ask for what, and one place where everything arrives.

What it costs grows with the flows that ask, not with those there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf

import nats.errors
import trio
from trio_asyncio import aio_as_trio

from ..model import Delivery, FlowEnded, Notice
from .connection import Connection
from .credit import FEW_LANES, HEARTBEAT, LANES, PORTION, Credit
from .layout import ConsumerSet
from .outbox import Outbox
from .pull import DeliveryBuffer, Pull

_STOP = 2.0
"""Seconds that stopping waits for what is already on its way."""
_LATE = 5.0
"""Seconds that the inboxes of a flow that is gone are heard."""


class PullConsumer:
    """See :class:`worker.ports.Consumer`.

    Args:
        connection: its client.
        outbox: sends our requests after all settlements.
        most: most messages asked for in one request.
        make: called with a flow of which something is wanted, and that is not bound.
        lost: called with a flow whose consumer, the server says, is gone.
        stopping: called on the asyncio side when it stops, before the last pulls end.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        *,
        make: Callable[[str], None],
        lost: Callable[[str], None],
        stopping: Callable[[], Awaitable[None]],
        most: int = PORTION,
    ) -> None:
        self.ack_wait = 0.0
        self.stopped = False
        self._begun = False
        """Whether requests of the connection before can be answered no more."""
        self._connection, self._outbox, self._make, self._most = connection, outbox, make, most
        self._lost, self._stopping = lost, stopping
        self._arrivals = DeliveryBuffer()
        self._pullers: dict[str, Pull] = {}
        self._asks: dict[Pull, None] = {}
        """Those that may have something to ask for."""
        self._open: dict[Pull, None] = {}
        """Those that may have an open request."""
        self._recalls: list[Pull] = []
        self._void: set[str] = set()
        """Flows that are gone, which is not received yet: what is wanted of them until then never comes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._listened = 0.0
        outbox.after.append(self._send)

    # The Trio side.

    def add_credit(self, count: int, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.add_credit`."""
        if flow in self._void or self.stopped:
            return
        puller = self.open(flow)
        puller.add_credit(count)
        if puller.bound:
            self._may_ask(puller)
        elif not puller.making:
            self._make(flow)

    def recall_credit(self, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.recall_credit`."""
        if flow in self._void or self.stopped:
            return
        puller = self.open(flow)
        if puller.outstanding and self._connection.up:
            puller.recalled = True
            self._recalls.append(puller)
            self._outbox.wake()
        else:
            puller.withdrawn(trio.current_time())

    async def receive(self) -> Sequence[Delivery | Notice]:
        """See :meth:`worker.ports.Consumer.receive`."""
        await self._arrivals.wait()
        self._void.clear()
        return self._arrivals.taken()

    async def stop(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.stop`."""
        self.stopped = True
        with trio.move_on_after(_STOP):
            await aio_as_trio(self._end_interest)()
        return [each for each in self._arrivals.taken() if isinstance(each, Delivery)]

    # The asyncio side.

    def know(self, layout: ConsumerSet) -> None:
        """How the queue is divided now: what retired consumers have is not for others to hand to us."""
        self._arrivals.retiring = layout if layout.retired else None

    def tell(self, notice: Notice) -> None:
        """Have a notice received."""
        if not self.stopped:
            self._arrivals.put(notice)

    async def end(self) -> None:
        """Nothing more is to be done."""
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def find(self, flow: str) -> Pull | None:
        """A flow, if there is one of that name."""
        return self._pullers.get(flow)

    def open(self, flow: str) -> Pull:
        """A flow; there is one from now on."""
        if (puller := self._pullers.get(flow)) is None:
            puller = self._pullers[flow] = Pull(
                flow,
                self._connection,
                self._outbox,
                credit=Credit(self._most, FEW_LANES if flow else LANES),
                arrivals=self._arrivals,
                lost=self._on_lost,
                asks=self._may_ask,
            )
        return puller

    def close(self, flow: str) -> None:
        """A flow is gone."""
        if puller := self._pullers.pop(flow, None):
            self._forget(puller)
            puller.close(trio.current_time() + _LATE)
        self._void.add(flow)
        self.tell(FlowEnded(flow))

    async def check(self, now: float) -> None:
        """Give up requests of which nothing was heard; to be called a few times a second."""
        stood_still = now - self._listened > 2 * HEARTBEAT  # a stopped process, a starved loop
        self._listened = now
        if not self._connection.up:
            return
        for puller in [*self._open]:
            if stood_still:
                puller.excuse(now)
            await puller.give_up_silent(now)
            if not puller.outstanding:
                self._open.pop(puller, None)
        await self._arrivals.close_left(now)

    async def begin_anew(self) -> None:
        """Ask, over a new connection: into new inboxes, so that nothing asked for before is answered now."""
        if not self._begun:
            await self._arrivals.close_left(inf)
        self._begun = True
        for puller in self._pullers.values():
            if puller.wanted and puller.bound:
                self._may_ask(puller)
            elif puller.wanted and not puller.making:
                self._make(puller.flow)

    def _may_ask(self, puller: Pull) -> None:
        self._asks[puller] = None
        self._outbox.wake()

    def _on_lost(self, puller: Pull) -> None:
        if self._pullers.get(puller.flow) is puller and puller.bound:
            puller.unbind()
            self._lost(puller.flow)

    async def _send(self) -> None:
        if self.stopped:
            return
        if self._recalls:
            recalled, self._recalls = self._recalls, []
            task = asyncio.ensure_future(self._take_back(recalled))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._outbox.crowded or not self._begun:
            return
        asks, self._asks = self._asks, {}
        now = trio.current_time()
        for puller in asks:
            if not await puller.ask(now):
                self._asks[puller] = None
            if puller.outstanding:
                self._open[puller] = None

    async def _take_back(self, pullers: list[Pull]) -> None:
        try:
            if self._connection.up:
                for puller in pullers:
                    await puller.withdraw()
                await self._connection.round_trip()
        except (nats.errors.Error, OSError):
            pass  # nothing that was asked for comes over a connection that is lost
        for puller in pullers:
            if self._pullers.get(puller.flow) is puller:
                puller.withdrawn(trio.current_time())

    async def _end_interest(self) -> None:
        if not self._connection.up:
            return
        await self._stopping()
        for puller in [*self._open]:
            await puller.withdraw()
        await self._connection.round_trip()

    def _forget(self, puller: Pull) -> None:
        self._asks.pop(puller, None)
        self._open.pop(puller, None)

    def connection_changed(self, up: bool) -> None:
        """Expect nothing more of open requests, once the connection is lost."""
        if not up:
            self._begun = False
            for puller in self._pullers.values():
                puller.disconnected()
            self._open.clear()
