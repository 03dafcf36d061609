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
from .model import Abandon, Delivery, Nak
from .policy.ledger import Early, Finished, Fresh, Running
from .ports import Consumer
from .process import Job
from .settle import settle


class Intake:
    """Takes deliveries from a consumer, and has a job run for each that is to be attempted."""

    def __init__(self, bench: Bench, slots: trio.Nursery) -> None:
        self._bench, self._slots = bench, slots
        self._consumer: Consumer | None = None
        self._open = False
        """Whether what comes is run, and not given back."""
        self._free = bench.rules.slots
        self._due: deque[Job] = deque()
        """Jobs that wait for a slot's task to wake up, or to be made."""
        self._resting = trio.lowlevel.ParkingLot()
        """Tasks of slots without a job."""

    async def run(self, consumer: Consumer) -> None:
        """Fetch until cancelled."""
        self._consumer, self._open = consumer, True
        self._bench.leases.last(consumer.ack_wait)
        consumer.want(self._free)
        while True:
            deliveries = await consumer.receive()
            self._bench.leases.last(consumer.ack_wait)
            self._take_all(deliveries, consumer)

    async def stop(self) -> None:
        """Ask for nothing more, and give back at once what still arrives."""
        if self._consumer:
            self._open = False
            self._take_all(await self._consumer.stop(), self._consumer)
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
                if self._open and self._free > 0 and ours:
                    self._start(Job(lease, attempt, wait, bench))
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

    def _start(self, job: Job) -> None:
        self._free -= 1
        self._due.append(job)
        if self._resting:
            self._resting.unpark()
        else:
            self._slots.start_soon(self._slot)

    async def _slot(self) -> None:
        """Run one job after the other. A task and a scope for each would cost a tenth of a message.

        The scope is around the waits of the job that runs; what ends these (the drain, a lost lease) uses it up.
        """
        while self._due:
            with trio.CancelScope() as scope:
                while self._due and not scope.cancel_called:
                    job = self._due.popleft()
                    await job.run(scope)
                    self._freed()
                    if self._open and not self._due and not scope.cancel_called:
                        await self._resting.park()
            if scope.cancelled_caught:
                job.stopped()
                self._freed()

    def _freed(self) -> None:
        self._free += 1
        if self._consumer:
            self._consumer.want(1)
