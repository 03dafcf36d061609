"""Intake: from deliveries to jobs.

We never have more than we can run: a message waiting in our memory is one that no other worker can have, and its
lease is already running. So the consumer is given credit, one for each free slot, and a slot comes back when its job
has settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from .bench import Bench
from .events import Redelivered, Settled
from .heartbeat import Lease
from .model import Abandon, Delivery, Nak
from .policy.ledger import Early, Finished, Fresh, Running
from .ports import Consumer
from .process import process
from .settle import settle

_Work = tuple[Lease, int, float, Consumer]
"""A message, which attempt it is, the seconds to wait before, and who gets the slot's credit afterwards."""


class Intake:
    """Takes deliveries from a consumer and starts a job for each that is to be run."""

    def __init__(self, bench: Bench, jobs: trio.Nursery) -> None:
        self._bench, self._jobs = bench, jobs
        self._consumer: Consumer | None = None
        self._free = bench.rules.slots
        self._due: deque[_Work] = deque()
        """To be run, each by a task that is on its way to fetch it."""
        self._resting = trio.lowlevel.ParkingLot()
        """Tasks whose job is done."""

    async def run(self, consumer: Consumer) -> None:
        """Fetch until cancelled."""
        self._consumer = consumer
        self._bench.leases.last(consumer.ack_wait)
        consumer.want(self._free)
        while True:
            deliveries = await consumer.receive()
            self._bench.leases.last(consumer.ack_wait)
            self._take_all(deliveries, consumer)

    async def stop(self) -> None:
        """Ask for nothing more, and give back at once what still arrives."""
        if consumer := self._consumer:
            self._consumer = None
            self._take_all(await consumer.stop(), consumer)
        self._resting.unpark_all()

    def _take_all(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        newest = {delivery.id: delivery for delivery in deliveries}
        for delivery in deliveries:
            self._take(delivery, consumer, newest=newest[delivery.id] is delivery)

    def _take(self, delivery: Delivery, consumer: Consumer, *, newest: bool = True) -> None:
        # Of a message that has come twice at once only the newest delivery is given back: a NAK of the other as well
        # would take the message from its next worker.
        bench = self._bench
        match bench.ledger.arrived(delivery, now=trio.current_time()):
            case Fresh(attempt, wait):
                lease = bench.leases.take(delivery)
                # Credit makes it rare that more comes than was wanted, not impossible: a request may outlive a
                # connection. And what lay here for long, because this process did not run, others may have by now.
                ours = trio.current_time() < bench.leases.lost_at(lease)
                if self._consumer and self._free > 0 and ours:
                    self._free -= 1
                    self._start((lease, attempt, wait, consumer))
                    return
                settle(bench, lease, attempt, Nak() if newest else Abandon(), attempted=False)
            case Running():
                bench.leases.adopt(delivery)
                bench.emit(Redelivered(delivery, "running"))
            case Finished(verdict):
                bench.queue.settle(delivery, verdict, before=delivery.arrived)
                bench.emit(Redelivered(delivery, "finished"))
            case Early(remaining) if newest:
                before = bench.leases.terms.lost_at(delivery.arrived)
                if trio.current_time() < before:
                    bench.queue.settle(delivery, Nak(remaining), before=before)
                    bench.emit(Redelivered(delivery, "early"))
                else:  # others may have it
                    bench.emit(Settled(Abandon()))
        consumer.want(1)

    def _start(self, work: _Work) -> None:
        self._due.append(work)
        if self._resting:
            self._resting.unpark()
        else:
            self._jobs.start_soon(self._slot)

    async def _slot(self) -> None:
        """Run one job after the other: a task for each would cost a tenth of a message."""
        while self._due:
            lease, attempt, wait, consumer = self._due.popleft()
            await process(lease, attempt, wait, self._bench)
            self._free += 1
            consumer.want(1)
            if self._consumer and not self._due:
                await self._resting.park()
