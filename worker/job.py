"""One delivery, from its message to its settlement: decode, invoke, decide, store a dead letter, call back, settle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from .admission import Admission
from .callbacks import FirstCallback
from .dead_letters import store_dead_letter
from .events import (
    AnnotationIgnored,
    CallbackIgnored,
    InvocationEnded,
    InvocationStarted,
    Settled,
    WorkCrashed,
)
from .heartbeat import Lease
from .model import (
    Abandon,
    Ack,
    Attempted,
    Crashed,
    DeadLetter,
    Final,
    Interrupted,
    Invocation,
    LeaseLost,
    Malformed,
    Nak,
    NotSent,
    Outcome,
    Responded,
    StoredBody,
    Term,
    Verdict,
)
from .policy.decide import decide, status_of
from .policy.decode import decode
from .policy.flow import Flow
from .policy.report import make_callback
from .policy.retry import Retry, apply_annotations
from .services import Services

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Job:
    """One attempt at one message. It always settles the message, and the lease covers all of it."""

    lease: Lease
    attempt: int
    delay: float
    """Seconds of back-off to wait before the invocation."""
    flow: Flow
    """The flow whose slot the job has."""
    token: Lease | None
    """The lease of the invocation's token; when it is lost, the invocation must end."""
    admission: Admission
    services: Services
    retry: Retry
    """The retry policy; the message's annotations may change it."""
    free_slot: Callable[[Job, Verdict], None]
    """Frees the slot of a job whose verdict is decided."""
    invocation: Invocation | None = None
    """None until the request is sent."""
    in_flight: bool = False
    """Whether the flow's limiter counts the invocation as in flight."""
    started_at: float = 0.0
    duration: float = 0.0
    has_slot: bool = True
    """Whether the job still has its slot; a callback can outlast it."""
    outcome: Outcome | None = None
    counts: bool = True
    """Whether the job counts as an attempt."""
    verdict: Verdict = Nak()  # noqa: RUF009 -- an immutable value
    """The verdict of the settlement; before it, the one if the job is cancelled between outcome and settlement."""

    async def run(self, scope: trio.CancelScope) -> None:
        """Attempt the message, and settle it.

        *scope* is around this call alone. The end of the drain's time or the loss of the lease cancels it; then the
        caller must call :meth:`settle_cancelled`.
        """
        self.services.drain.add(scope)
        self.lease.guard(scope)
        if self.token:
            self.token.guard(scope)
        try:
            attempted = await self.catch_crash(self.attempt_message())
            if isinstance(attempted, Crashed):
                attempted = attempted, self.end_attempt(attempted)
            outcome, verdict = attempted
            has_callback = self.invocation is not None and self.invocation.callback is not None
            if isinstance(verdict, Term) or (has_callback and isinstance(verdict, Final)):
                verdict = await self.conclude(outcome, verdict)
            self._settle(verdict)
        finally:
            self.services.drain.jobs.discard(scope)
            if isinstance(self.outcome, Responded) and self.outcome.release:
                self.outcome.release()

    async def catch_crash(self, step: Awaitable[T]) -> T | Crashed:
        """Await a step; return an exception as :class:`Crashed`, so that a bug in one message stops no other."""
        try:
            return await step
        except Exception as error:  # noqa: BLE001 -- the package's one net; Cancelled is no Exception
            self.services.emit(WorkCrashed(self.lease.delivery, error))
            return Crashed(error)

    # The attempt.

    async def attempt_message(self) -> tuple[Outcome, Verdict]:
        """Decode the message, invoke the function, and decide."""
        outcome = await self.decode_and_invoke()
        return outcome, self.end_attempt(outcome)

    async def decode_and_invoke(self) -> Outcome:
        """Decode the message, wait out its back-off, invoke the function, and return the outcome."""
        config = self.services.config
        decoded = decode(self.lease.delivery, namespace=config.namespace, user_agent=config.user_agent)
        if isinstance(decoded, Malformed):
            return decoded
        invocation, callback_error = decoded
        if callback_error:
            self.services.emit(CallbackIgnored(invocation.call_id, invocation.label, callback_error))
        self._apply_annotations(invocation)
        if self.delay:
            await self.services.timers.wait(self.delay, "early redelivery")
        return await self._invoke(invocation)

    def _apply_annotations(self, invocation: Invocation) -> None:
        """Apply the function's annotations to this job's retries, and to the function's quota on all workers."""
        self.retry, ignored = apply_annotations(self.retry, invocation.annotations)
        if self.flow.function:
            ignored += self.admission.observe(self.flow, invocation.annotations, self.lease.delivery.id[1])
        for each in ignored:
            self.services.emit(AnnotationIgnored(invocation.label, each.annotation, each.value, each.reason))

    async def _invoke(self, invocation: Invocation) -> Attempted | NotSent | Malformed:
        self.invocation, stored_at = invocation, self.lease.delivery.id[1] / 1e9
        self.services.emit(InvocationStarted(invocation, self.attempt, max(0.0, self.services.utc_now() - stored_at)))
        self.started_at = trio.current_time()
        if limiter := self.flow.limiter:
            self.in_flight = True
            due = limiter.due
            limiter.started(self.started_at)
            if limiter.due != due:
                self.admission.limit_changed(self.flow)
        return await self.services.functions.invoke(invocation)

    def end_attempt(self, outcome: Outcome) -> Verdict:
        """Return the verdict, note whether the attempt counts, and emit the end of an invocation that was started."""
        services, probe_wait = self.services, None
        if self.in_flight and self.flow.limiter:
            self.in_flight = False
            probe_wait = self.flow.limiter.ended(self.started_at, trio.current_time(), status_of(outcome))
            self.admission.limit_changed(self.flow)
        draw, now = services.rng(), services.utc_now()
        verdict, self.counts = decide(
            outcome, attempt=self.attempt, retry=self.retry, draw=draw, now=now, probe_wait=probe_wait
        )
        self.outcome = outcome
        if self.invocation:
            self.duration = trio.current_time() - self.started_at
            attempts, counts = self.retry.attempts, self.counts or not isinstance(outcome, Attempted | NotSent)
            services.emit(
                InvocationEnded(self.invocation, self.attempt, attempts, outcome, verdict, self.duration, counts)
            )
        return verdict

    # After a final verdict: what must happen before the message leaves the queue.

    async def conclude(self, outcome: Outcome, verdict: Final) -> Verdict:
        """Store the dead letter, post the callback, and return the verdict that stands after that.

        If the job is cancelled before that, the message returns to the queue, and its next delivery repeats all steps.
        After a callback has failed once, the verdict stands instead: a callback must not make a function run twice.
        """
        if isinstance(verdict, Term) and await self.catch_crash(self._store_dead_letter(outcome, verdict)) is not True:
            # Nothing leaves the queue without its dead letter. It is safe there, and other messages need the slot.
            self.counts = False
            return Nak(self.retry.backoff.max_wait)
        if self.invocation:
            # The verdict stands even if this crashes: a bug in a callback must not make the function run again.
            await self.catch_crash(self._post_callback(self.invocation, outcome, verdict))
        return verdict

    async def _store_dead_letter(self, outcome: Outcome, verdict: Term) -> bool:
        """Store the dead letter, and return whether that succeeded."""
        sent = self.invocation
        attempts, call_id, function = (self.attempt, sent.call_id, sent.label) if sent else (0, None, None)
        body = sent.stored_body if sent else None
        letter = DeadLetter(self.lease.delivery, verdict.reason, attempts, call_id, function, status_of(outcome), body)
        return await store_dead_letter(self.services, letter)

    async def _post_callback(self, invocation: Invocation, outcome: Outcome, verdict: Final) -> None:
        """Post the callback, if there is one, until it is delivered, stored or given up."""
        agent, attempts = self.services.config.user_agent, self.retry.attempts
        attempt, duration = min(self.attempt, attempts), self.duration  # a delivery count may exceed those allowed
        callback = make_callback(
            invocation,
            outcome,
            message=self.lease.delivery.id,
            attempt=attempt,
            attempts=attempts,
            duration=duration,
            user_agent=agent,
        )
        if callback:
            first = FirstCallback(
                self.services,
                self.lease,
                invocation,
                callback,
                self.attempt,
                leave_slot=partial(self.free_slot, self, verdict),
                let_stand=partial(self._let_stand, verdict),
            )
            await first.run()

    def _let_stand(self, verdict: Final) -> None:
        """Settle by this verdict even if the job is cancelled."""
        self.verdict = verdict

    # The end.

    def settle_cancelled(self) -> None:
        """Settle after :meth:`run` was cancelled."""
        lost = self.lease.lost
        if self.outcome is None:
            verdict = self.end_attempt(LeaseLost() if lost else Interrupted())
        else:
            verdict = Abandon() if lost else self.verdict
            self.counts = isinstance(verdict, Final)
        self._settle(verdict)

    def _settle(self, verdict: Verdict) -> None:
        self.verdict = verdict
        body = self.invocation.stored_body if self.invocation else None
        if body and isinstance(verdict, Term) and self.services.config.dead_letters:
            body = None  # the dead letter refers to it
        settle(self.services, self.lease, self.attempt, verdict, counts=self.counts, body=body)


def settle(
    services: Services, lease: Lease, attempt: int, verdict: Verdict, *, counts: bool, body: StoredBody | None = None
) -> None:
    """End a lease by the verdict on attempt number *attempt*; *counts*: whether it counts as an attempt.

    A stored *body* is deleted after a final verdict. Nothing here waits, so nothing here can be cancelled halfway.
    """
    now = trio.current_time()
    before = services.leases.lost_at(lease)
    if (lease.lost or now >= before) and not isinstance(verdict, Ack):
        # Another worker may have the message, and a NAK or Term would disturb it. An Ack states what stays true.
        verdict = Abandon()
    services.leases.remove(lease)
    services.ledger.record(lease.delivery, attempt, verdict, counts=counts, now=now)
    if isinstance(verdict, Nak) and (count := services.ledger.count_to_announce(lease.delivery)):
        services.queue.announce(count)
    if not isinstance(verdict, Abandon):
        finished = isinstance(verdict, Final) and not lease.lost  # another worker may still read it
        services.queue.settle(lease.delivery, verdict, before=before, body=body if finished else None)
    services.emit(Settled(verdict))
