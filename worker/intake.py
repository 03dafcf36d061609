"""Intake: from deliveries to jobs.

A worker never takes more messages than it can run. A message that waits in its memory is one that no other worker can
have, and its lease is already running. So the queue is given credit for free slots, and a slot becomes free when its
job has settled. :mod:`worker.policy.shares` decides which flow gets the credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from .admission import Admission
from .callback_retries import CallbackRetries
from .events import LimitLearned, Redelivered, Settled
from .job import Job
from .model import (
    CALLBACKS,
    Abandon,
    AttemptCount,
    CreditReturned,
    Delivery,
    Final,
    FlowEnded,
    FlowNotice,
    Nak,
    Notice,
    PausedFunctions,
    PendingCount,
    Published,
    QueueShared,
    QuotaChanged,
    Receipt,
    StoredCount,
    Verdict,
)
from .policy.flow import Flow
from .policy.ledger import Extend, GiveBack, Postpone, SettleAgain, Start, decide_delivery
from .policy.quota import is_token_flow
from .policy.shares import Shares
from .ports import Consumer
from .services import Services


class Intake:
    """Receives from a consumer, and runs a job for each delivery that is to be attempted."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self._services, self._nursery = services, nursery
        self._consumer: Consumer | None = None
        self._open = False
        """Whether deliveries are started; if not, they are given back."""
        self._shares = Shares(services.config.slots, self._make_flow)
        self._admission = Admission(services.queue, services.quotas, services.leases, self._shares, self._decide)
        self._callbacks = CallbackRetries(services, nursery)
        self._jobs: deque[Job] = deque()
        """Jobs that wait for a task to wake up or to begin."""
        self._idle = trio.lowlevel.ParkingLot()
        """Tasks without a job."""
        self._wait = trio.CancelScope()
        """Around waiting for the consumer. Its deadline is when to decide again, whatever arrives."""

    async def run(self, consumer: Consumer) -> None:
        """Receive until cancelled."""
        self._consumer, self._open = consumer, True
        self._services.leases.set_ack_wait(consumer.ack_wait)
        self._callbacks.start(consumer)
        while True:
            with trio.CancelScope() as self._wait:
                self._decide()
                while True:
                    batch = await consumer.receive()
                    self._services.leases.set_ack_wait(consumer.ack_wait)
                    self._take_all(batch)
                    self._decide()

    async def stop(self) -> None:
        """Request nothing more, and give back at once what still arrives."""
        if self._consumer:
            self._open = False
            self._callbacks.stop()
            self._take_all(await self._consumer.stop())
            self._decide()
            self._admission.stop()
        self._idle.unpark_all()

    def _take_all(self, batch: Sequence[Delivery | Notice]) -> None:
        newest = {each.id: each for each in batch if isinstance(each, Delivery)}
        for each in batch:
            if not isinstance(each, Delivery):
                self._apply(each)
            elif is_token_flow(each.flow):
                self._admission.tokens.receive(each)
            elif each.flow == CALLBACKS:
                self._callbacks.receive(each)
            else:
                self._take(each, newest=newest[each.id] is each)

    def _apply(self, notice: Notice) -> None:
        match notice:
            case QueueShared():
                self._shares.add_shared()
            case QuotaChanged(function, quota):
                self._admission.set_quota(function, quota)
            case PausedFunctions(functions):
                self._shares.set_paused(functions)
            case Receipt(received):
                received()
            case AttemptCount():
                self._services.ledger.learn(notice)
            case _ if is_token_flow(notice.flow):
                if isinstance(notice, CreditReturned):
                    self._admission.tokens.take_back(notice.flow, notice.count)
            case _ if notice.flow != CALLBACKS:  # its credit is never recalled, and its messages are not counted here
                self._apply_to_shares(notice)

    def _apply_to_shares(self, notice: FlowNotice) -> None:
        match notice:
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

    def _take(self, delivery: Delivery, *, newest: bool) -> None:
        """Ask what to do with a delivery, and do it."""
        services, now = self._services, trio.current_time()
        before = services.leases.terms.lost_at(delivery.received_at)
        flow = self._shares.flow(delivery.flow)
        known = services.ledger.classify(delivery, now=now)
        # A message of a paused function can arrive for credit from before the pause, until that credit is recalled.
        room, token = self._open and self._shares.has_room(flow), not flow.paused and self._admission.may_start(flow)
        action = decide_delivery(known, newest=newest, leased=now < before, room=room, token=token)
        if isinstance(action, Start):
            self._start(delivery, flow, action, now)
            return
        match action:
            case Extend():
                services.leases.replace_delivery(delivery)
                services.emit(Redelivered(delivery, "running"))
            case SettleAgain(verdict):
                services.queue.settle(delivery, verdict, before=delivery.received_at)
                services.emit(Redelivered(delivery, "finished"))
            case Postpone(remaining):
                self._nak(delivery, Nak(remaining), before)
                services.emit(Redelivered(delivery, "early"))
            case GiveBack(attempt, delay):
                services.ledger.record(delivery, attempt, Nak(delay), counts=False, now=now)
                self._nak(delivery, Nak(delay), before)
                services.emit(Settled(Nak(delay)))
            case Abandon():
                services.ledger.abandon(delivery)
                services.emit(Settled(action))
        self._shares.note_arrival(flow, delivery.num_pending, now)

    def _nak(self, delivery: Delivery, nak: Nak, before: float) -> None:
        if count := self._services.ledger.count_to_announce(delivery):
            self._services.queue.announce(count)
        self._services.queue.settle(delivery, nak, before=before)

    def _start(self, delivery: Delivery, flow: Flow, start: Start, now: float) -> None:
        self._shares.start(flow, delivery.num_pending, now)
        services = self._services
        lease = services.leases.add(delivery)
        token, retry = self._admission.start(flow), services.config.retry
        job = Job(lease, start.attempt, start.delay, flow, token, self._admission, services, retry, self._free)
        self._jobs.append(job)
        if self._idle:
            self._idle.unpark()
        else:
            self._nursery.start_soon(self._run_jobs)

    async def _run_jobs(self) -> None:
        """Run one job after the other. A task and a scope for each would cost a tenth of a message's CPU.

        The scope is around the waits of the job that runs. A drain or a lost lease cancels it, which uses it up.
        """
        while self._jobs:
            with trio.CancelScope() as scope:
                while self._jobs and not scope.cancel_called:
                    job = self._jobs.popleft()
                    await job.run(scope)
                    self._free(job, job.verdict)
                    del job  # an idle task would keep the message and its result in memory
                    if self._open and not self._jobs and not scope.cancel_called:
                        await self._idle.park()
            if scope.cancelled_caught:
                job.settle_cancelled()
                self._free(job, job.verdict)

    def _free(self, job: Job, verdict: Verdict) -> None:
        """Free the slot of a job with this verdict, unless it is free already, and decide which flow gets it."""
        if not job.has_slot:
            return
        job.has_slot = False
        now, flow = trio.current_time(), job.flow
        redelivery_at = now + verdict.delay if isinstance(verdict, Nak) else None
        held_for = now - job.lease.delivery.received_at
        self._shares.finish(flow, held_for, final=isinstance(verdict, Final), redelivery_at=redelivery_at)
        self._admission.finish(flow, job.token)  # after that, because its cap depends on what still runs
        self._decide(now)

    def _make_flow(self, name: str) -> Flow:
        flow = self._services.config.make_flow(name)
        self._admission.add_flow(flow)
        return flow

    def _decide(self, now: float | None = None) -> None:
        """Give free slots to flows as credit, and recall credit that is needed elsewhere."""
        if not self._consumer:
            return
        decision = self._shares.decide(trio.current_time() if now is None else now)
        for flow, count in decision.credits.items():
            self._consumer.add_credit(count, flow.name)
        for flow in decision.recalls:
            self._consumer.recall_credit(flow.name)
        for flow in decision.new_limits:
            self._services.emit(LimitLearned(flow.function, flow.last_limit))
        self._wait.deadline = decision.decide_at
        if self._open:
            self._admission.balance(self._consumer)
