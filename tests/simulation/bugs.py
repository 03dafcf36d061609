"""Bugs that tests put into the worker, to check that the simulation finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from worker.admission import Admission
from worker.drain import Drain
from worker.events import LeaseExpired
from worker.heartbeat import Lease, Leases
from worker.intake import Intake
from worker.job import Job, settle
from worker.model import Ack, Final, Interrupted, LeaseLost, Nak, Responded, Term, Verdict
from worker.policy import ledger
from worker.policy.backoff import Backoff
from worker.policy.decide import decide
from worker.policy.lease import LeaseTerms
from worker.policy.ledger import Ledger
from worker.policy.report import make_callback
from worker.policy.shares import Shares

Patch = pytest.MonkeyPatch

Bug = Callable[[Patch], None]

HEALTHY: list[Bug] = []
FAULTY: list[Bug] = []
RARE: list[Bug] = []


def always(bug: Bug) -> Bug:
    """Mark a bug that shows without faults."""
    HEALTHY.append(bug)
    return bug


def in_trouble(bug: Bug) -> Bug:
    """Mark a bug that shows only after a fault."""
    FAULTY.append(bug)
    return bug


def seldom(bug: Bug) -> Bug:
    """Mark a bug that shows only after a certain fault at a certain moment."""
    RARE.append(bug)
    return bug


@always
def acknowledged_before_the_callback(patch: Patch) -> None:
    """Ack a message before its callback."""
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
    """Post a callback for each response, also for one that is retried."""
    outcome_of = Job.decode_and_invoke

    async def eager(self: Job) -> Any:
        outcome = await outcome_of(self)
        if self.invocation and isinstance(outcome, Responded):
            await self._post_callback(self.invocation, outcome, Ack())
        return outcome

    patch.setattr(Job, "decode_and_invoke", eager)


@always
def what_is_given_up_is_not_called_back(patch: Patch) -> None:
    """Post no callback for a message that is given up."""
    post = Job._post_callback

    async def silent(self: Job, invocation: Any, outcome: Any, verdict: Any) -> None:
        if self.attempt < self.retry.attempts:
            await post(self, invocation, outcome, verdict)

    patch.setattr(Job, "_post_callback", silent)


@always
def retries_told_off_by_one(patch: Patch) -> None:
    """Put the number of attempts, not of retries, into X-Retry."""
    patch.setattr(
        "worker.job.make_callback", lambda *given, attempt, **rest: make_callback(*given, attempt=attempt + 1, **rest)
    )


@always
def extended_after_it_was_settled(patch: Patch) -> None:
    """Extend a lease after the settlement."""
    patch.setattr(Leases, "remove", lambda *_: None)


@always
def a_drain_without_bound(patch: Patch) -> None:
    """Cancel nothing at the end of shutdown_timeout."""

    async def patient(self: Drain, stops: Any) -> None:
        await anext(stops)
        self.intake.cancel()

    patch.setattr(Drain, "watch", patient)


@always
def what_arrives_in_the_drain_is_forgotten(patch: Patch) -> None:
    """Drop the deliveries that arrive while the worker stops, without a nak."""

    async def stop(self: Intake) -> None:
        if consumer := self._consumer:
            self._consumer = None
            await consumer.stop()

    patch.setattr(Intake, "stop", stop)


@always
def the_drain_gives_back_with_a_wait(patch: Patch) -> None:
    """Nak a message that the drain cancelled with a delay, as after a failed attempt."""
    patch.setattr(
        "worker.job.decide",
        lambda outcome, **rest: (Nak(10.0), False) if isinstance(outcome, Interrupted) else decide(outcome, **rest),
    )


@always
def one_attempt_too_many(patch: Patch) -> None:
    """Retry after the policy's last attempt."""
    patch.setattr(
        "worker.job.decide", lambda outcome, attempt, **rest: decide(outcome, attempt=attempt - 1 or 1, **rest)
    )


@always
def one_slot_too_many(patch: Patch) -> None:
    """Request one message more than the worker has slots."""
    begin = Intake.__init__

    def greedy(self: Intake, services: Any, jobs: Any) -> None:
        begin(self, services, jobs)
        self._shares = Shares(services.config.slots + 1, self._make_flow)
        self._admission = Admission(services.queue, services.quotas, services.leases, self._shares, self._decide)

    patch.setattr(Intake, "__init__", greedy)


@always
def jitter_both_ways(patch: Patch) -> None:
    """Let jitter lengthen a wait."""
    delay = Backoff.delay
    patch.setattr(Backoff, "delay", lambda self, attempt, *, draw: delay(self, attempt, draw=2 * draw))


@always
def nothing_is_extended_in_a_drain(patch: Patch) -> None:
    """Record extensions in a drain without sending them."""
    begin, renew, drains = Drain.__init__, Leases._renew, list[Drain]()

    def noted(self: Drain, timeout: float, emit: Any) -> None:
        begin(self, timeout, emit)
        drains.append(self)

    def idle(self: Leases, now: float) -> None:
        if not any(drain.intake.cancel_called for drain in drains if drain._emit == self._emit):
            return renew(self, now)
        for lease in self._held.values():
            lease.confirmed_at = lease.sent_at = now
        return None

    patch.setattr(Drain, "__init__", noted)
    patch.setattr(Leases, "_renew", idle)


@seldom
def a_second_early_is_early_enough(patch: Patch) -> None:
    """Run a message at once that a restart of the server redelivers too early."""
    patch.setattr(ledger, "EARLY", 1.0)


@in_trouble
def what_is_lost_runs_on(patch: Patch) -> None:
    """Continue an invocation after its lease was lost."""

    def lose(self: Leases, lease: Lease) -> None:
        self.remove(lease)
        lease.lost = True
        self._emit(LeaseExpired(lease.delivery))

    patch.setattr(Leases, "_lose", lose)


@in_trouble
def unconfirmed_extensions_count(patch: Patch) -> None:
    """Treat each sent extension as confirmed."""
    renew = Leases._renew

    def trusting(self: Leases, now: float) -> None:
        for lease in self._held.values():
            lease.confirmed_at = lease.sent_at
        renew(self, now)

    patch.setattr(Leases, "_renew", trusting)


@in_trouble
def leases_are_never_lost(patch: Patch) -> None:
    """Keep leases that were not extended in time."""
    patch.setattr(LeaseTerms, "lost_at", lambda _, kept: kept + 1e6)


@in_trouble
def given_back_after_the_lease(patch: Patch) -> None:
    """Nak a message whose lease was lost, which disturbs the next worker."""

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
    """Lose the credit of a message whose lease was lost."""
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
    """Give up a message after a probe of the limiter was rejected, though this is no attempt."""

    def hasty(outcome: Any, probe_wait: float | None, **rest: Any) -> tuple[Verdict, bool]:
        verdict, counts = decide(outcome, probe_wait=probe_wait, **rest)
        return (Term("given up"), False) if probe_wait is not None and not counts else (verdict, counts)

    patch.setattr("worker.job.decide", hasty)


@seldom
def given_up_unburied(patch: Patch) -> None:
    """Give up a message whose dead letter was not stored."""
    store = Job._try_to_store

    async def careless(self: Job, letter: Any) -> bool:
        await store(self, letter)
        return True

    patch.setattr(Job, "_try_to_store", careless)


@in_trouble
def what_runs_is_run_again(patch: Patch) -> None:
    """Forget the running messages in the ledger."""
    arrived = Ledger.classify

    def blind(self: Ledger, delivery: Any, *, now: float) -> Any:
        self._running.discard(delivery.id)
        return arrived(self, delivery, now=now)

    patch.setattr(Ledger, "classify", blind)


@seldom
def what_has_ended_is_run_again(patch: Patch) -> None:
    """Forget the finished messages in the ledger."""
    ended = Ledger.record

    def forgetful(self: Ledger, delivery: Any, attempt: int, verdict: Any, **rest: Any) -> None:
        ended(self, delivery, attempt, verdict, **rest)
        if isinstance(verdict, Final):
            del self._past[delivery.id]

    patch.setattr(Ledger, "record", forgetful)


@seldom
def what_comes_early_is_run(patch: Patch) -> None:
    """Run a message at once that is redelivered before its wait is over."""
    arrived = Ledger.classify
    patch.setattr(Ledger, "classify", lambda self, delivery, *, now: arrived(self, delivery, now=now + 1e6))


@in_trouble
def the_newest_delivery_is_ignored(patch: Patch) -> None:
    """Ignore the token of a redelivery while its message runs."""
    patch.setattr(Leases, "replace_delivery", lambda *_: None)
