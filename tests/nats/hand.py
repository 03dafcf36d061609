"""A worker without a core: it gives every flow credit, and a test decides about its deliveries."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from math import inf

import trio

from tests.servers import NatsServer
from worker.config import load
from worker.events import Event
from worker.model import (
    SHARED,
    Ack,
    CreditReturned,
    Delivery,
    FlowEnded,
    Nak,
    Notice,
    PendingCount,
    Published,
    QueueShared,
    StoredCount,
)
from worker.nats.queue import NatsQueue, open_queue
from worker.ports import Consumer

EACH = 4
"""Credit of each flow."""


class Hand:
    """A worker's queue, with its events, notices and deliveries."""

    queue: NatsQueue
    consumer: Consumer

    def __init__(self, act: Callable[[Hand, Delivery], None], each: int = EACH) -> None:
        self.came: list[Delivery] = []
        self.told: list[Notice] = []
        self.events: list[Event] = []
        self.asked: Counter[str] = Counter()
        self.held: dict[tuple[int, int], Delivery] = {}
        self.stopped = False
        self._act, self._each = act, each

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._extend)
            while True:
                for each in await self.consumer.receive():
                    self._heed(each)

    async def stop(self) -> None:
        """As a drain begins: what came unstarted goes back."""
        self.stopped = True
        for each in await self.consumer.stop():
            self.queue.settle(each, Nak(), before=inf)

    async def _extend(self) -> None:
        while True:
            await trio.sleep(self.consumer.ack_wait / 3)
            for delivery in self.held.values():
                self.queue.extend(delivery, lambda: None, before=inf)

    def _heed(self, each: Delivery | Notice) -> None:
        if isinstance(each, Delivery):
            self.came.append(each)
            self.asked[each.flow] -= 1
            self._act(self, each)
            self._want(each.flow)
            return
        self.told.append(each)
        match each:
            case QueueShared():
                self._want(SHARED)
            case StoredCount(flow, messages) | PendingCount(flow, messages) if messages:
                self._want(flow)
            case QueueShared():
                self._want(SHARED)
            case Published(flow):
                self._want(flow)
            case CreditReturned(flow, count):
                self.asked[flow] -= count
            case FlowEnded(flow):
                del self.asked[flow]

    def _want(self, flow: str) -> None:
        if not self.stopped and (more := self._each - self.asked[flow]) > 0:
            self.asked[flow] += more
            self.consumer.add_credit(more, flow)


def acknowledge(hand: Hand, delivery: Delivery) -> None:
    """Ack a delivery, as most tests do."""
    hand.queue.settle(delivery, Ack(), before=inf)


@asynccontextmanager
async def at_work(
    server: NatsServer,
    settings: Mapping[str, str],
    act: Callable[[Hand, Delivery], None] = acknowledge,
    each: int = EACH,
) -> AsyncIterator[Hand]:
    """Consume a server's queue."""
    hand = Hand(act, each)
    environment = {"nats_port": str(server.port), **settings}
    async with open_queue(load(environment).settings, hand.events.append) as queue, trio.open_nursery() as nursery:
        hand.queue, hand.consumer = queue, await queue.consume()
        nursery.start_soon(hand.run)
        yield hand
        nursery.cancel_scope.cancel()
