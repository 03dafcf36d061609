"""Bugs that tests put into the worker, to check that the simulation finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from worker.admission import Admission
from worker.callback_retries import CallbackRetries
from worker.callbacks import FirstCallback
from worker.dead_letters import store_dead_letter
from worker.drain import Drain
from worker.events import LeaseExpired
from worker.heartbeat import Lease, Leases
from worker.intake import Intake
from worker.job import Job, settle
from worker.model import Ack, Final, Interrupted, LeaseLost, Nak, Responded, Term, Verdict
from worker.policy import ledger
from worker.policy.decide import decide
from worker.policy.lease import LeaseTerms
from worker.policy.ledger import Ledger
from worker.policy.report import make_callback
from worker.policy.retry import Backoff
from worker.policy.shares import Shares

Patch = pytest.MonkeyPatch

Bug = Callable[[Patch], None]

HEALTHY: list[Bug] = []
FAULTY: list[Bug] = []
RARE: list[Bug] = []


def shows_without_faults(bug: Bug) -> Bug:
    """Mark a bug that shows without faults."""
    HEALTHY.append(bug)
    return bug


def shows_with_faults(bug: Bug) -> Bug:
    """Mark a bug that shows only after a fault."""
    FAULTY.append(bug)
    return bug


def shows_with_rare_faults(bug: Bug) -> Bug:
    """Mark a bug that shows only after a certain fault at a certain moment."""
    RARE.append(bug)
    return bug


@shows_without_faults
def ack_before_the_callback(patch: Patch) -> None:
    """Ack a message before its callback."""
    conclude = Job.conclude
    early: list[Lease] = []

    async def ack_and_conclude(self: Job, outcome: Any, verdict: Final) -> Verdict:
        if isinstance(verdict, Ack):
            early.append(self.lease)
            settle(self.services, self.lease, self.attempt, verdict, counts=True)
        return await conclude(self, outcome, verdict)

    def settle_unless_acked(services: Any, lease: Lease, attempt: int, verdict: Verdict, **more: Any) -> None:
        if lease not in early:
            settle(services, lease, attempt, verdict, **more)

    patch.setattr(Job, "conclude", ack_and_conclude)
    patch.setattr("worker.job.settle", settle_unless_acked)


@shows_without_faults
def callback_for_retried_response(patch: Patch) -> None:
    """Post a callback for each response, also for one that is retried."""
    outcome_of = Job.decode_and_invoke

    async def invoke_and_post(self: Job) -> Any:
        outcome = await outcome_of(self)
        if self.invocation and isinstance(outcome, Responded):
            await self._post_callback(self.invocation, outcome, Ack())
        return outcome

    patch.setattr(Job, "decode_and_invoke", invoke_and_post)


@shows_without_faults
def no_callback_for_given_up_message(patch: Patch) -> None:
    """Post no callback for a message that is given up."""
    post = Job._post_callback

    async def post_unless_last(self: Job, invocation: Any, outcome: Any, verdict: Any) -> None:
        if self.attempt < self.retry.attempts:
            await post(self, invocation, outcome, verdict)

    patch.setattr(Job, "_post_callback", post_unless_last)


@shows_without_faults
def retry_header_off_by_one(patch: Patch) -> None:
    """Put the number of attempts, not of retries, into X-Retry."""
    patch.setattr(
        "worker.job.make_callback", lambda *given, attempt, **rest: make_callback(*given, attempt=attempt + 1, **rest)
    )


@shows_without_faults
def lease_extended_after_the_settlement(patch: Patch) -> None:
    """Extend a lease after the settlement."""
    patch.setattr(Leases, "remove", lambda *_: None)


@shows_without_faults
def drain_without_time_limit(patch: Patch) -> None:
    """Cancel nothing at the end of shutdown_timeout."""

    async def watch_once(self: Drain, stops: Any) -> None:
        await anext(stops)
        self.intake.cancel()

    patch.setattr(Drain, "watch", watch_once)


@shows_without_faults
def delivery_dropped_in_drain(patch: Patch) -> None:
    """Drop the deliveries that arrive while the worker stops, without a nak."""

    async def stop(self: Intake) -> None:
        if consumer := self._consumer:
            self._consumer = None
            await consumer.stop()

    patch.setattr(Intake, "stop", stop)


@shows_without_faults
def drain_nak_with_delay(patch: Patch) -> None:
    """Nak a message that the drain cancelled with a delay, as after a failed attempt."""
    patch.setattr(
        "worker.job.decide",
        lambda outcome, **rest: (Nak(10.0), False) if isinstance(outcome, Interrupted) else decide(outcome, **rest),
    )


@shows_without_faults
def hand_back_not_announced(patch: Patch) -> None:
    """Announce no delivery that was no attempt."""
    patch.setattr(Ledger, "count_to_announce", lambda *_: None)


@shows_without_faults
def one_attempt_too_many(patch: Patch) -> None:
    """Retry after the policy's last attempt."""
    patch.setattr(
        "worker.job.decide", lambda outcome, attempt, **rest: decide(outcome, attempt=attempt - 1 or 1, **rest)
    )


@shows_without_faults
def one_slot_too_many(patch: Patch) -> None:
    """Request one message more than the worker has slots."""
    init = Intake.__init__

    def init_with_one_more(self: Intake, services: Any, jobs: Any) -> None:
        init(self, services, jobs)
        self._shares = Shares(services.config.slots + 1, self._make_flow)
        self._admission = Admission(services.queue, services.quotas, services.leases, self._shares, self._decide)

    patch.setattr(Intake, "__init__", init_with_one_more)


@shows_without_faults
def jitter_lengthens_the_wait(patch: Patch) -> None:
    """Let jitter lengthen a wait."""
    delay = Backoff.delay
    patch.setattr(Backoff, "delay", lambda self, attempt, *, draw: delay(self, attempt, draw=2 * draw))


@shows_without_faults
def no_extension_in_drain(patch: Patch) -> None:
    """Record extensions in a drain without sending them."""
    init, renew, drains = Drain.__init__, Leases._renew, list[Drain]()

    def init_and_record(self: Drain, timeout: float, emit: Any) -> None:
        init(self, timeout, emit)
        drains.append(self)

    def renew_unless_draining(self: Leases, now: float) -> None:
        if not any(drain.intake.cancel_called for drain in drains if drain._emit == self._emit):
            return renew(self, now)
        for lease in self._held.values():
            lease.confirmed_at = lease.sent_at = now
        return None

    patch.setattr(Drain, "__init__", init_and_record)
    patch.setattr(Leases, "_renew", renew_unless_draining)


@shows_with_rare_faults
def redelivery_a_second_early_runs_at_once(patch: Patch) -> None:
    """Run a message at once that a restart of the server redelivers too early."""
    patch.setattr(ledger, "EARLY", 1.0)


@shows_with_faults
def invocation_continues_after_lost_lease(patch: Patch) -> None:
    """Continue an invocation after its lease was lost."""

    def lose(self: Leases, lease: Lease) -> None:
        self.remove(lease)
        lease.lost = True
        self._emit(LeaseExpired(lease.delivery))

    patch.setattr(Leases, "_lose", lose)


@shows_with_faults
def unconfirmed_extensions_count(patch: Patch) -> None:
    """Treat each sent extension as confirmed."""
    renew = Leases._renew

    def confirm_and_renew(self: Leases, now: float) -> None:
        for lease in self._held.values():
            lease.confirmed_at = lease.sent_at
        renew(self, now)

    patch.setattr(Leases, "_renew", confirm_and_renew)


@shows_with_faults
def leases_are_never_lost(patch: Patch) -> None:
    """Keep leases that were not extended in time."""
    patch.setattr(LeaseTerms, "lost_at", lambda _, confirmed_at: confirmed_at + 1e6)


@shows_with_faults
def nak_after_lost_lease(patch: Patch) -> None:
    """Nak a message whose lease was lost, which disturbs the next worker."""

    def settle_lost(services: Any, lease: Lease, attempt: int, verdict: Verdict, **more: Any) -> None:
        lease.lost = False
        settle(services, lease, attempt, verdict, **more)

    patch.setattr("worker.job.settle", settle_lost)
    patch.setattr(
        "worker.job.decide",
        lambda outcome, **rest: (Nak(), True) if isinstance(outcome, LeaseLost) else decide(outcome, **rest),
    )
    patch.setattr(LeaseTerms, "lost_at", lambda self, confirmed_at: confirmed_at + self.ack_wait * 2 / 3 + 1e-3)


@shows_with_faults
def credit_is_lost_with_the_lease(patch: Patch) -> None:
    """Lose the credit of a message whose lease was lost."""
    stopped = Job.settle_cancelled

    def drop_credit_and_stop(self: Job) -> None:
        if self.lease.lost:
            consumers[-1].add_credit(-1, "")
        stopped(self)

    consumers: list[Any] = []
    run = Intake.run

    async def record_and_run(self: Intake, consumer: Any) -> None:
        consumers.append(consumer)
        await run(self, consumer)

    patch.setattr(Job, "settle_cancelled", drop_credit_and_stop)
    patch.setattr(Intake, "run", record_and_run)


@shows_without_faults
def given_up_after_refused_probe(patch: Patch) -> None:
    """Give up a message after a probe of the limiter was rejected, though this is no attempt."""

    def decide_and_give_up(outcome: Any, probe_wait: float | None, **rest: Any) -> tuple[Verdict, bool]:
        verdict, counts = decide(outcome, probe_wait=probe_wait, **rest)
        return (Term("given up"), False) if probe_wait is not None and not counts else (verdict, counts)

    patch.setattr("worker.job.decide", decide_and_give_up)


@shows_with_rare_faults
def given_up_without_dead_letter(patch: Patch) -> None:
    """Give up a message whose dead letter was not stored."""

    async def store_and_ignore(services: Any, letter: Any) -> bool:
        await store_dead_letter(services, letter)
        return True

    patch.setattr("worker.job.store_dead_letter", store_and_ignore)


@shows_without_faults
def callback_taken_for_stored(patch: Patch) -> None:
    """Settle a message although its callback was not stored."""

    async def store_nothing(self: FirstCallback, wait: float) -> bool:  # noqa: ARG001 -- its signature
        return True

    patch.setattr(FirstCallback, "_store", store_nothing)


@shows_without_faults
def failed_stored_callback_acked(patch: Patch) -> None:
    """Ack a stored callback whose receiver has failed."""
    send = CallbackRetries._send

    async def send_and_ack(self: CallbackRetries, lease: Lease, stored: Any) -> Verdict:
        await send(self, lease, stored)
        return Ack()

    patch.setattr(CallbackRetries, "_send", send_and_ack)


@shows_without_faults
def delivered_stored_callback_sent_again(patch: Patch) -> None:
    """Nak a stored callback that was delivered."""
    send = CallbackRetries._send
    nakked = set[tuple[CallbackRetries, str]]()

    async def send_and_nak(self: CallbackRetries, lease: Lease, stored: Any) -> Verdict:
        verdict = await send(self, lease, stored)
        if isinstance(verdict, Ack) and (self, stored.call_id) not in nakked:
            nakked.add((self, stored.call_id))
            return Nak(1.0)
        return verdict

    patch.setattr(CallbackRetries, "_send", send_and_nak)


@shows_without_faults
def callback_dropped_in_drain(patch: Patch) -> None:
    """Drop a callback that the drain cancels, without storing it, and settle its message."""

    async def run(self: FirstCallback) -> None:
        try:
            await self._try_with_room()
        except trio.Cancelled:
            self.let_stand()
            raise

    patch.setattr(FirstCallback, "run", run)


@shows_without_faults
def expired_callback_without_dead_letter(patch: Patch) -> None:
    """Term a stored callback that has expired, without its dead letter."""

    async def term(self: CallbackRetries, lease: Lease, stored: Any, reason: str) -> Verdict:  # noqa: ARG001 -- its signature
        return Term(reason)

    patch.setattr(CallbackRetries, "_give_up", term)


@shows_with_faults
def running_message_runs_again(patch: Patch) -> None:
    """Forget the running messages in the ledger."""
    classify = Ledger.classify

    def forget_and_classify(self: Ledger, delivery: Any, *, now: float) -> Any:
        self._running.discard(delivery.id)
        return classify(self, delivery, now=now)

    patch.setattr(Ledger, "classify", forget_and_classify)


@shows_with_rare_faults
def finished_message_runs_again(patch: Patch) -> None:
    """Forget the finished messages in the ledger."""
    record = Ledger.record

    def record_and_forget(self: Ledger, delivery: Any, attempt: int, verdict: Any, **rest: Any) -> None:
        record(self, delivery, attempt, verdict, **rest)
        if isinstance(verdict, Final):
            del self._past[delivery.id]

    patch.setattr(Ledger, "record", record_and_forget)


@shows_with_rare_faults
def early_redelivery_runs_at_once(patch: Patch) -> None:
    """Run a message at once that is redelivered before its wait is over."""
    classify = Ledger.classify
    patch.setattr(Ledger, "classify", lambda self, delivery, *, now: classify(self, delivery, now=now + 1e6))


@shows_with_faults
def newest_delivery_is_ignored(patch: Patch) -> None:
    """Ignore the token of a redelivery while its message runs."""
    patch.setattr(Leases, "replace_delivery", lambda *_: None)
