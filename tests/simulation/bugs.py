"""Bugs to be put into the worker, to see whether the simulation finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from worker.admission import Admission
from worker.drain import CancelGroup, Drain
from worker.events import LeaseExpired
from worker.heartbeat import Lease, Leases
from worker.intake import Intake
from worker.job import Job
from worker.model import Ack, Final, Interrupted, LeaseLost, Nak, Responded, Term, Verdict
from worker.policy import ledger
from worker.policy.backoff import Backoff
from worker.policy.decide import decide
from worker.policy.lease import LeaseTerms
from worker.policy.ledger import Ledger
from worker.policy.report import make_callback
from worker.policy.shares import Shares
from worker.settle import settle

Patch = pytest.MonkeyPatch

Bug = Callable[[Patch], None]

HEALTHY: list[Bug] = []
FAULTY: list[Bug] = []
RARE: list[Bug] = []


def always(bug: Bug) -> Bug:
    """A bug that shows where nothing fails."""
    HEALTHY.append(bug)
    return bug


def in_trouble(bug: Bug) -> Bug:
    """A bug that takes a fault to show."""
    FAULTY.append(bug)
    return bug


def seldom(bug: Bug) -> Bug:
    """A bug that takes a certain fault in a certain moment to show."""
    RARE.append(bug)
    return bug


@always
def acknowledged_before_the_callback(patch: Patch) -> None:
    """What is done is acknowledged first, and then called back."""
    conclude = Job.conclude
    early: list[Lease] = []

    async def hasty(self: Job, outcome: Any, verdict: Final) -> Verdict:
        if isinstance(verdict, Ack):
            early.append(self.lease)
            settle(self.services, self.lease, self.attempt, verdict, counts=True)
        return await conclude(self, outcome, verdict)

    def late(services: Any, lease: Lease, attempt: int, verdict: Verdict, *, counts: bool) -> None:
        if lease not in early:
            settle(services, lease, attempt, verdict, counts=counts)

    patch.setattr(Job, "conclude", hasty)
    patch.setattr("worker.job.settle", late)


@always
def called_back_before_the_end(patch: Patch) -> None:
    """Each answer is called back, also one that is retried."""
    outcome_of = Job.decode_and_invoke

    async def telling(self: Job) -> Any:
        outcome = await outcome_of(self)
        if self.invocation and isinstance(outcome, Responded):
            await self._post_callback(self.invocation, outcome, lambda: None)
        return outcome

    patch.setattr(Job, "decode_and_invoke", telling)


@always
def what_is_given_up_is_not_called_back(patch: Patch) -> None:
    """Only what is done is called back."""
    tell = Job._post_callback

    async def silent(self: Job, invocation: Any, outcome: Any, failed_once: Any) -> None:
        if self.attempt < self.retry.attempts:
            await tell(self, invocation, outcome, failed_once)

    patch.setattr(Job, "_post_callback", silent)


@always
def retries_told_off_by_one(patch: Patch) -> None:
    """X-Retry tells the attempts, not the retries."""
    patch.setattr(
        "worker.job.make_callback", lambda *given, attempt, **rest: make_callback(*given, attempt=attempt + 1, **rest)
    )


@always
def extended_after_it_was_settled(patch: Patch) -> None:
    """A lease is kept after it was settled."""
    patch.setattr(Leases, "remove", lambda *_: None)


@always
def a_drain_without_bound(patch: Patch) -> None:
    """The end of shutdown_timeout cancels nothing."""

    async def patient(self: Drain, stops: Any) -> None:
        await anext(stops)
        self.intake.cancel()

    patch.setattr(Drain, "watch", patient)


@always
def what_arrives_in_the_drain_is_forgotten(patch: Patch) -> None:
    """What is on its way when the worker stops asking is not given back."""

    async def stop(self: Intake) -> None:
        if consumer := self._consumer:
            self._consumer = None
            await consumer.stop()

    patch.setattr(Intake, "stop", stop)


@always
def the_drain_gives_back_with_a_wait(patch: Patch) -> None:
    """What the drain stopped waits as if it had failed."""
    patch.setattr(
        "worker.job.decide",
        lambda outcome, **rest: (Nak(10.0), False) if isinstance(outcome, Interrupted) else decide(outcome, **rest),
    )


@always
def one_attempt_too_many(patch: Patch) -> None:
    """The policy's last attempt is not the last."""
    patch.setattr(
        "worker.job.decide", lambda outcome, attempt, **rest: decide(outcome, attempt=attempt - 1 or 1, **rest)
    )


@always
def one_slot_too_many(patch: Patch) -> None:
    """The worker asks for one message more than it has slots."""
    begin = Intake.__init__

    def greedy(self: Intake, services: Any, jobs: Any) -> None:
        begin(self, services, jobs)
        self._shares = Shares(services.config.slots + 1, self._make_flow)
        self._admission = Admission(services.queue, services.quotas, services.leases, self._shares, self._decide)

    patch.setattr(Intake, "__init__", greedy)


@always
def jitter_both_ways(patch: Patch) -> None:
    """A jittered wait can be longer than the wait."""
    delay = Backoff.delay
    patch.setattr(Backoff, "delay", lambda self, attempt, *, draw: delay(self, attempt, draw=2 * draw))


@always
def nothing_is_extended_in_a_drain(patch: Patch) -> None:
    """Once a worker is told to stop, it only believes that it extends its leases."""
    begin, pull, renew, draining = Leases.__init__, CancelGroup.cancel, Leases._renew, list[CancelGroup]()

    def begin_anew(self: Leases, queue: Any, emit: Any) -> None:
        begin(self, queue, emit)
        draining.clear()

    def noted(self: CancelGroup) -> None:
        pull(self)
        draining.append(self)

    def idle(self: Leases, now: float) -> None:
        if not draining:
            return renew(self, now)
        for lease in self._held.values():
            lease.confirmed_at = lease.sent_at = now
        return None

    patch.setattr(Leases, "__init__", begin_anew)
    patch.setattr(CancelGroup, "cancel", noted)
    patch.setattr(Leases, "_renew", idle)


@seldom
def a_second_early_is_early_enough(patch: Patch) -> None:
    """What a restart of the server brings too early is run at once."""
    patch.setattr(ledger, "EARLY", 1.0)


@in_trouble
def what_is_lost_runs_on(patch: Patch) -> None:
    """A lost lease does not end the invocation."""

    def lose(self: Leases, lease: Lease) -> None:
        self.remove(lease)
        lease.lost = True
        self._emit(LeaseExpired(lease.delivery))

    patch.setattr(Leases, "_lose", lose)


@in_trouble
def unconfirmed_extensions_count(patch: Patch) -> None:
    """An extension that was merely sent is trusted."""
    renew = Leases._renew

    def trusting(self: Leases, now: float) -> None:
        for lease in self._held.values():
            lease.confirmed_at = lease.sent_at
        renew(self, now)

    patch.setattr(Leases, "_renew", trusting)


@in_trouble
def leases_are_never_lost(patch: Patch) -> None:
    """What cannot be extended in time runs on."""
    patch.setattr(LeaseTerms, "lost_at", lambda _, kept: kept + 1e6)


@in_trouble
def given_back_after_the_lease(patch: Patch) -> None:
    """A lost lease is given back, and disturbs whoever has the message now."""

    def bold(services: Any, lease: Lease, attempt: int, verdict: Verdict, *, counts: bool) -> None:
        lease.lost = False
        settle(services, lease, attempt, verdict, counts=counts)

    patch.setattr("worker.job.settle", bold)
    patch.setattr(
        "worker.job.decide",
        lambda outcome, **rest: (Nak(), True) if isinstance(outcome, LeaseLost) else decide(outcome, **rest),
    )
    patch.setattr(LeaseTerms, "lost_at", lambda self, kept: kept + self.ack_wait * 2 / 3 + 1e-3)


@in_trouble
def credit_is_lost_with_the_lease(patch: Patch) -> None:
    """The slot of a message whose lease was lost is not asked for again."""
    stopped = Job.settle_cancelled

    def costly(self: Job) -> None:
        if self.lease.lost:
            consumers[-1].add_credit(-1, "")
        stopped(self)

    consumers: list[Any] = []
    run = Intake.run

    async def noted(self: Intake, consumer: Any) -> None:
        consumers.append(consumer)
        await run(self, consumer)

    patch.setattr(Job, "settle_cancelled", costly)
    patch.setattr(Intake, "run", noted)


@always
def given_up_to_learn(patch: Patch) -> None:
    """What was sent to learn how many a function takes is given up after its last attempt, though it was none."""

    def hasty(outcome: Any, probe_wait: float | None, **rest: Any) -> tuple[Verdict, bool]:
        verdict, counts = decide(outcome, probe_wait=probe_wait, **rest)
        return (Term("given up"), False) if probe_wait is not None and not counts else (verdict, counts)

    patch.setattr("worker.job.decide", hasty)


@seldom
def given_up_unburied(patch: Patch) -> None:
    """What cannot be buried is given up all the same."""
    store = Job._try_to_store

    async def careless(self: Job, letter: Any) -> bool:
        await store(self, letter)
        return True

    patch.setattr(Job, "_try_to_store", careless)


@in_trouble
def what_runs_is_run_again(patch: Patch) -> None:
    """The ledger does not know what runs."""
    arrived = Ledger.classify

    def blind(self: Ledger, delivery: Any, *, now: float) -> Any:
        self._running.discard(delivery.id)
        return arrived(self, delivery, now=now)

    patch.setattr(Ledger, "classify", blind)


@seldom
def what_has_ended_is_run_again(patch: Patch) -> None:
    """The ledger forgets what it has ended."""
    ended = Ledger.record

    def forgetful(self: Ledger, delivery: Any, attempt: int, verdict: Any, **rest: Any) -> None:
        ended(self, delivery, attempt, verdict, **rest)
        if isinstance(verdict, Final):
            del self._past[delivery.id]

    patch.setattr(Ledger, "record", forgetful)


@seldom
def what_comes_early_is_run(patch: Patch) -> None:
    """A message that comes before its wait is over is run at once."""
    arrived = Ledger.classify
    patch.setattr(Ledger, "classify", lambda self, delivery, *, now: arrived(self, delivery, now=now + 1e6))


@in_trouble
def the_newest_delivery_is_ignored(patch: Patch) -> None:
    """A message that comes again while it runs keeps the old token."""
    patch.setattr(Leases, "replace_delivery", lambda *_: None)
