"""One delivery, read aloud: decode, invoke, decide, bury what is given up, call back, settle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from .callback import call_back
from .events import (
    AnnotationIgnored,
    CallbackIgnored,
    DeadLettered,
    DeadLetterNotStored,
    InvocationEnded,
    InvocationStarted,
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
    Outcome,
    Term,
    Verdict,
)
from .policy.backoff import Backoff
from .policy.decide import decide, sooner, status_of
from .policy.decode import decode
from .policy.quota import parse_quota
from .policy.report import make_callback
from .policy.retry import apply_annotations
from .ports import BrokerUnavailableError
from .services import Services
from .settle import settle
from .slot import Slot

T = TypeVar("T")

_BURIALS = 5
"""How many times a dead letter is tried to be stored before its message goes back to the queue."""
_BURIAL_WAIT = Backoff(first_wait=0.5, max_wait=4.0)
"""Between those tries: 7.5 s in all, longer than an election of a stream's leader takes."""


class Job:
    """One attempt at one message, *wait* seconds from now. It settles whatever happens; the lease covers all of it."""

    __slots__ = (
        "attempt",
        "counts",
        "delay",
        "duration",
        "final",
        "if_stopped",
        "invocation",
        "lease",
        "outcome",
        "redelivery_in",
        "retry",
        "services",
        "slot",
        "started_at",
    )

    def __init__(self, lease: Lease, attempt: int, wait: float, slot: Slot, services: Services) -> None:
        self.lease, self.attempt, self.delay, self.slot, self.services = lease, attempt, wait, slot, services
        self.retry = services.config.retry
        self.invocation: Invocation | None = None
        self.started_at = 0.0
        self.duration = 0.0
        self.outcome: Outcome | None = None
        self.counts = True
        """See :attr:`worker.events.InvocationEnded.counts`."""
        self.redelivery_in: float | None = None
        """In how many seconds it comes again, when it was given back."""
        self.final = False
        """Whether the message is off the queue."""
        self.if_stopped: Verdict = Nak()
        """The verdict if what must come before a final one cannot come now."""

    async def run(self, scope: trio.CancelScope) -> None:
        """Attempt it, and settle it.

        Args:
            scope: around this, alone, until it returns. It is cancelled when the drain's time is up or the lease is
                lost; then :meth:`settle_cancelled` is to be called.
        """
        self.services.drain.work.add(scope)
        self.lease.guard(scope)
        if token := self.slot.token:
            token.guard(scope)
        try:
            decided = await self.catch_crash(self.decode_and_invoke())
            outcome, verdict = self.decide(decided) if isinstance(decided, Crashed) else decided
            self.emit_end(outcome, verdict)
            if not isinstance(verdict, Final):
                self._settle(verdict, attempted=self.counts)
                return
            if isinstance(verdict, Term) or (self.invocation and self.invocation.callback):
                concluded = await self.catch_crash(self.finish(outcome, verdict))
                # What a bug of ours kept from being concluded stays on the queue: nothing given up leaves it unburied.
                verdict = Nak(self.retry.backoff.max_wait) if isinstance(concluded, Crashed) else concluded
            self._settle(verdict, attempted=isinstance(verdict, Final))
        finally:
            self.services.drain.work.discard(scope)

    def settle_cancelled(self) -> None:
        """Settle what was stopped."""
        lost = self.lease.lost
        if self.outcome is None:
            outcome, verdict = self.decide(LeaseLost() if lost else Interrupted())
            self.emit_end(outcome, verdict)
            self._settle(verdict, attempted=lost)
        else:
            verdict = Abandon() if lost else self.if_stopped
            self._settle(verdict, attempted=isinstance(verdict, Final))

    def _settle(self, verdict: Verdict, *, attempted: bool) -> None:
        self.final = isinstance(verdict, Final)
        self.redelivery_in = verdict.delay if isinstance(verdict, Nak) else None
        settle(self.services, self.lease, self.attempt, verdict, counts=attempted)

    async def catch_crash(self, step: Awaitable[T]) -> T | Crashed:
        """The package's one net: a bug met by one message must not stop the others."""
        try:
            return await step
        except Exception as error:  # noqa: BLE001 -- that is what the net is for; Cancelled is no Exception
            self.services.emit(WorkCrashed(self.lease.delivery, error))
            return Crashed(error)

    async def decode_and_invoke(self) -> tuple[Outcome, Verdict]:
        """Decode, invoke, decide."""
        return self.decide(await self._outcome())

    def decide(self, outcome: Outcome) -> tuple[Outcome, Verdict]:
        """What it means."""
        services = self.services
        verdict = decide(outcome, attempt=self.attempt, retry=self.retry, draw=services.rng(), now=services.utc_now())
        wait = self.slot.ended(self.started_at, trio.current_time(), status_of(outcome))
        if wait is not None and not isinstance(verdict, Ack):
            back = sooner(outcome, wait, now=services.utc_now())
            self.counts, verdict = back is None, back or verdict
        return outcome, verdict

    async def _outcome(self) -> Outcome:
        config = self.services.config
        decoded = decode(self.lease.delivery, namespace=config.namespace, user_agent=config.user_agent)
        if isinstance(decoded, Malformed):
            return decoded
        invocation, complaint = decoded
        self._heed(invocation, complaint)
        if self.delay:
            await self.services.timers.wait(self.delay, "early redelivery")
        return await self._invoke(invocation)

    async def _invoke(self, invocation: Invocation) -> Attempted:
        self.invocation = invocation
        stored = self.lease.delivery.id[1] / 1e9
        self.services.emit(InvocationStarted(invocation, self.attempt, max(0.0, self.services.utc_now() - stored)))
        self.started_at = trio.current_time()
        self.slot.started(self.started_at)
        return await self.services.functions.invoke(invocation)

    def emit_end(self, outcome: Outcome, verdict: Verdict) -> None:
        """Tell the end of an invocation that was started, however it ended."""
        self.outcome = outcome
        if self.invocation:
            self.duration = trio.current_time() - self.started_at
            self.services.emit(
                InvocationEnded(
                    self.invocation, self.attempt, self.retry.attempts, outcome, verdict, self.duration, self.counts
                )
            )

    async def finish(self, outcome: Outcome, verdict: Final) -> Verdict:
        """What must have happened before a final verdict may be said, and the verdict that stands after it.

        Stopped in between, the message goes back to the queue, and its next delivery does all of it again; but a
        callback that has failed before does not make a function run twice: that one is given up with the drain.
        """

        def callback_failed() -> None:
            self.if_stopped = verdict

        if isinstance(verdict, Term) and not await self._store_dead_letter(outcome, verdict):
            return Nak(self.retry.backoff.max_wait)
        if self.invocation:
            # The verdict stands whatever breaks here: a bug in telling the result must not run the function again.
            await self.catch_crash(self._post_callback(self.invocation, outcome, callback_failed))
        return verdict

    async def _store_dead_letter(self, outcome: Outcome, verdict: Term) -> bool:
        """Store the dead letter; the lease is kept meanwhile. False: it cannot be stored now.

        Then the message must go back to the queue, where it is safe, for its slot would be missing to others.
        """
        invocation, delivery = self.invocation, self.lease.delivery
        letter = DeadLetter(
            delivery=delivery,
            reason=verdict.reason,
            attempts=self.attempt if invocation else 0,
            call_id=invocation.call_id if invocation else None,
            function=invocation.label if invocation else None,
            status=status_of(outcome),
        )
        keep = self.services.config.dead_letters
        if keep and not await self._try_to_store(letter):
            return False
        self.services.emit(
            DeadLettered(delivery, letter.call_id, letter.function, letter.reason, letter.attempts, stored=keep)
        )
        return True

    async def _try_to_store(self, letter: DeadLetter) -> bool:
        for number in range(1, _BURIALS + 1):
            try:
                await self.services.queue.store_dead_letter(letter)
            except BrokerUnavailableError as error:
                self.services.emit(DeadLetterNotStored(letter.delivery, letter.call_id, str(error)))
                if number < _BURIALS:
                    await self.services.timers.wait(_BURIAL_WAIT.ceiling(number), "dead letter")
            else:
                return True
        return False

    async def _post_callback(self, invocation: Invocation, outcome: Outcome, failed_once: Callable[[], None]) -> None:
        callback = make_callback(
            invocation,
            outcome,
            attempt=min(self.attempt, self.retry.attempts),  # a delivery count may run past what was attempted
            attempts=self.retry.attempts,
            duration=self.duration,
            user_agent=self.services.config.user_agent,
        )
        if callback:
            await call_back(callback, invocation, self.services, failed_once)

    def _heed(self, invocation: Invocation, complaint: str | None) -> None:
        """The function's annotations, and what is wrong with them or with the callback."""
        if complaint:
            self.services.emit(CallbackIgnored(invocation.call_id, invocation.label, complaint))
        self.retry, ignored = apply_annotations(self.retry, invocation.annotations)
        if flow := self.slot.flow.function:
            quotas, annotations = self.services.quotas, invocation.annotations
            if annotations or quotas.agreed(flow):
                quota, unusable = parse_quota(annotations)
                self.slot.flow.weight = quota.weight
                quotas.propose(flow, quota, self.lease.delivery.id[1])
                ignored += unusable
        for each in ignored:
            self.services.emit(AnnotationIgnored(invocation.label, each.annotation, each.value, each.reason))
