"""A worker without a core: it gives every flow credit, and a test settles its deliveries."""

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
    Receipt,
    StoredCount,
)
from worker.nats.queue import NatsQueue, open_queue
from worker.ports import Consumer

FLOW_CREDIT = 4
"""Credit of each flow."""


class CorelessWorker:
    """A worker's queue, with its events, notices and deliveries."""

    queue: NatsQueue
    consumer: Consumer

    def __init__(self, act: Callable[[CorelessWorker, Delivery], None], credit: int = FLOW_CREDIT) -> None:
        self.deliveries: list[Delivery] = []
        self.notices: list[Notice] = []
        self.events: list[Event] = []
        self.credit: Counter[str] = Counter()
        self.held: dict[tuple[int, int], Delivery] = {}
        self.stopped = False
        self._act, self._flow_credit = act, credit

    async def run(self) -> None:
        """Receive and handle deliveries and notices until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._extend)
            while True:
                for each in await self.consumer.receive():
                    self._handle(each)

    async def stop(self) -> None:
        """Stop as a drain begins, and nak the deliveries that the consumer still holds."""
        self.stopped = True
        for each in await self.consumer.stop():
            self.queue.settle(each, Nak(), before=inf)

    async def _extend(self) -> None:
        while True:
            await trio.sleep(self.consumer.ack_wait / 3)
            for delivery in self.held.values():
                self.queue.extend(delivery, lambda: None, before=inf)

    def _handle(self, each: Delivery | Notice) -> None:
        if isinstance(each, Delivery):
            self.deliveries.append(each)
            self.credit[each.flow] -= 1
            self._act(self, each)
            self._add_credit(each.flow)
            return
        self.notices.append(each)
        match each:
            case QueueShared():
                self._add_credit(SHARED)
            case StoredCount(flow, messages) | PendingCount(flow, messages) if messages:
                self._add_credit(flow)
            case QueueShared():
                self._add_credit(SHARED)
            case Published(flow):
                self._add_credit(flow)
            case Receipt(received):
                received()
            case CreditReturned(flow, count):
                self.credit[flow] -= count
            case FlowEnded(flow):
                del self.credit[flow]

    def _add_credit(self, flow: str) -> None:
        if not self.stopped and (more := self._flow_credit - self.credit[flow]) > 0:
            self.credit[flow] += more
            self.consumer.add_credit(more, flow)


def ack(worker: CorelessWorker, delivery: Delivery) -> None:
    """Ack a delivery, which is the default."""
    worker.queue.settle(delivery, Ack(), before=inf)


@asynccontextmanager
async def running_worker(
    server: NatsServer,
    settings: Mapping[str, str],
    act: Callable[[CorelessWorker, Delivery], None] = ack,
    credit: int = FLOW_CREDIT,
) -> AsyncIterator[CorelessWorker]:
    """Run a worker that consumes a server's queue; *act* is called with each delivery."""
    worker = CorelessWorker(act, credit)
    environment = {"nats_port": str(server.port), **settings}
    async with open_queue(load(environment).settings, worker.events.append) as queue, trio.open_nursery() as nursery:
        worker.queue, worker.consumer = queue, await queue.consume()
        nursery.start_soon(worker.run)
        yield worker
        nursery.cancel_scope.cancel()
