"""Intake: from deliveries to jobs.

We never have more than we can run: a message waiting in our memory is one that no other worker can have, and its
lease is already running. So the queue is given credit for slots that are free, and a slot comes back when its job has
settled. Which flow has the credit is :mod:`worker.policy.shares`'s to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from .admission import Admission
from .events import Redelivered, Settled
from .job import Job
from .model import (
    Abandon,
    CreditReturned,
    Delivery,
    FlowEnded,
    Nak,
    Notice,
    PausedFunctions,
    PendingCount,
    Published,
    QuotaChanged,
    StoredCount,
)
from .policy.flow import Flow
from .policy.ledger import Early, Finished, Fresh, Running
from .policy.quota import is_token_flow
from .policy.shares import Shares
from .ports import Consumer
from .services import Services
from .settle import settle
from .slot import Slot

NO_TOKEN = 0.1
"""Seconds until a message comes again that came when there was no token for it."""


class Intake:
    """Takes deliveries from a consumer, and has a job run for each that is to be attempted."""

    def __init__(self, services: Services, slots: trio.Nursery) -> None:
        self._bench, self._slots = services, slots
        self._consumer: Consumer | None = None
        self._open = False
        """Whether what comes is run, and not given back."""
        self._shares = Shares(services.config.slots, self._made)
        self._limits = Admission(services.queue, services.quotas, services.leases, self._shares, self._decide)
        self._new: list[Flow] = []
        self._due: deque[Job] = deque()
        """Jobs that wait for a slot's task to wake up, or to be made."""
        self._resting = trio.lowlevel.ParkingLot()
        """Tasks of slots without a job."""
        self._wait = trio.CancelScope()
        """Around waiting for what comes. Its deadline is when the shares must be decided anew, whatever comes."""

    async def run(self, consumer: Consumer) -> None:
        """Fetch until cancelled."""
        self._consumer, self._open = consumer, True
        self._bench.leases.set_ack_wait(consumer.ack_wait)
        while True:
            with trio.CancelScope() as self._wait:
                self._decide()
                while True:
                    arrived = await consumer.receive()
                    self._bench.leases.set_ack_wait(consumer.ack_wait)
                    self._take_all(arrived)
                    self._decide()

    async def stop(self) -> None:
        """Ask for nothing more, and give back at once what still arrives."""
        if self._consumer:
            self._open = False
            self._take_all(await self._consumer.stop())
            self._decide()
            self._limits.stop()
        self._resting.unpark_all()

    def _take_all(self, arrived: Sequence[Delivery | Notice]) -> None:
        newest = {each.id: each for each in arrived if isinstance(each, Delivery)}
        for each in arrived:
            if not isinstance(each, Delivery):
                self._heed(each)
            elif is_token_flow(each.flow):
                self._limits.receive_token(each)
            else:
                self._take(each, newest=newest[each.id] is each)

    def _made(self, name: str) -> Flow:
        flow = self._bench.config.make_flow(name)
        if flow.function:
            self._new.append(flow)
        return flow

    def _meet(self) -> None:
        """Learn of new flows whether they are limited."""
        while self._new:
            self._limits.add_flow(self._new.pop())

    def _heed(self, notice: Notice) -> None:
        match notice:
            case QuotaChanged(function, quota):
                self._limits.set_quota(function, quota)
            case PausedFunctions(functions):
                self._shares.set_paused(functions)
            case _ if is_token_flow(notice.flow):
                if isinstance(notice, CreditReturned):
                    self._limits.take_back(notice.flow, notice.count)
            case StoredCount(flow, messages):
                self._shares.set_stored(flow, messages)
            case PendingCount(flow, messages):
                self._shares.set_pending(flow, messages)
            case Published(flow):
                self._shares.add_published(flow)
            case CreditReturned(flow, count):
                self._shares.take_back(flow, count, trio.current_time())
            case FlowEnded(flow):
                self._shares.remove(flow)

    def _take(self, delivery: Delivery, *, newest: bool = True) -> None:
        # Of a message that has come twice at once only the newest delivery is given back: a NAK of the other as well
        # would take the message from its next worker.
        services, now = self._bench, trio.current_time()
        match services.ledger.classify(delivery, now=now):
            case Fresh(attempt, wait):
                lease = services.leases.add(delivery)
                # Credit makes it rare that more comes than was wanted, not impossible: a request may outlive a
                # connection. And what lay here for long, because this process did not run, others may have by now.
                ours = now < services.leases.lost_at(lease)
                flow = self._shares.flow(delivery.flow)
                self._meet()
                room = self._open and ours and self._shares.has_room(delivery.flow)
                if room and self._limits.may_start(flow):
                    self._shares.start(delivery.flow, delivery.num_pending, now)
                    hold = Slot(flow, self._learned, self._limits.start(flow))
                    self._start(Job(lease, attempt, wait, hold, services))
                    return
                # With room, it is its token that was lost, or has grown too old, while it was on its way.
                back = Nak(NO_TOKEN if room else 0.0)
                settle(services, lease, attempt, back if newest else Abandon(), counts=False)
            case Running():
                services.leases.replace_delivery(delivery)
                services.emit(Redelivered(delivery, "running"))
            case Finished(verdict):
                services.queue.settle(delivery, verdict, before=delivery.received_at)
                services.emit(Redelivered(delivery, "finished"))
            case Early(remaining) if newest:
                before = services.leases.terms.lost_at(delivery.received_at)
                if now < before:
                    services.queue.settle(delivery, Nak(remaining), before=before)
                    services.emit(Redelivered(delivery, "early"))
                else:  # others may have it
                    services.emit(Settled(Abandon()))
        self._shares.reject(delivery.flow, delivery.num_pending, now)

    def _start(self, job: Job) -> None:
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
                    self._freed(job)
                    if self._open and not self._due and not scope.cancel_called:
                        await self._resting.park()
            if scope.cancelled_caught:
                job.settle_cancelled()
                self._freed(job)

    def _freed(self, job: Job) -> None:
        now = trio.current_time()
        flow = job.slot.flow
        self._shares.finish(flow, now - job.lease.delivery.received_at, final=job.final)
        self._limits.finish(flow, job.slot.token)  # after that: what it may have counts from what still runs
        if job.redelivery_in is not None:
            self._shares.expect_redelivery(flow, now + job.redelivery_in)
        self._decide(now)

    def _learned(self, flow: Flow) -> None:
        self._shares.mark_changed(flow)
        self._decide()

    def _decide(self, now: float | None = None) -> None:
        """Give the credit to whom it belongs now."""
        if not self._consumer:
            return
        self._meet()
        decision = self._shares.decide(trio.current_time() if now is None else now)
        for flow, more in decision.credits.items():
            self._consumer.add_credit(more, flow.name)
        for flow in decision.recalls:
            self._consumer.recall_credit(flow.name)
        self._wait.deadline = decision.decide_at
        if self._open:
            self._limits.balance(self._consumer)
