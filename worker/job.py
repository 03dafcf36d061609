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
from .policy.quota import quota_of
from .policy.report import callback_of
from .policy.retry import annotated
from .ports import BrokerUnavailableError
from .services import Services
from .settle import settle
from .slot import Slot

T = TypeVar("T")

_BURIALS = 5
"""How many times a dead letter is tried to be stored before its message goes back to the queue."""
_BURIAL_WAIT = Backoff(initial=0.5, longest=4.0)
"""Between those tries: 7.5 s in all, longer than an election of a stream's leader takes."""


class Job:
    """One attempt at one message, *wait* seconds from now. It settles whatever happens; the lease covers all of it."""

    __slots__ = (
        "again",
        "attempt",
        "attempted",
        "began",
        "final",
        "if_stopped",
        "invocation",
        "lease",
        "outcome",
        "retry",
        "services",
        "slot",
        "took",
        "wait",
    )

    def __init__(self, lease: Lease, attempt: int, wait: float, hold: Slot, services: Services) -> None:
        self.lease, self.attempt, self.wait, self.slot, self.services = lease, attempt, wait, hold, services
        self.retry = services.config.retry
        self.invocation: Invocation | None = None
        self.began = 0.0
        self.took = 0.0
        self.outcome: Outcome | None = None
        self.attempted = True
        """See :attr:`worker.events.InvocationEnded.attempted`."""
        self.again: float | None = None
        """In how many seconds it comes again, when it was given back."""
        self.final = False
        """Whether the message is off the queue."""
        self.if_stopped: Verdict = Nak()
        """The verdict if what must come before a final one cannot come now."""

    async def run(self, scope: trio.CancelScope) -> None:
        """Attempt it, and settle it.

        Args:
            scope: around this, alone, until it returns. It is cancelled when the drain's time is up or the lease is
                lost; then :meth:`stopped` is to be called.
        """
        self.services.drain.work.add(scope)
        self.lease.guard(scope)
        if token := self.slot.token:
            token.guard(scope)
        try:
            decided = await self.caught(self.attempt_it())
            outcome, verdict = self.decide(decided) if isinstance(decided, Crashed) else decided
            self.ended(outcome, verdict)
            if not isinstance(verdict, Final):
                self._settle(verdict, attempted=self.attempted)
                return
            if isinstance(verdict, Term) or (self.invocation and self.invocation.callback):
                concluded = await self.caught(self.conclude(outcome, verdict))
                # What a bug of ours kept from being concluded stays on the queue: nothing given up leaves it unburied.
                verdict = Nak(self.retry.backoff.longest) if isinstance(concluded, Crashed) else concluded
            self._settle(verdict, attempted=isinstance(verdict, Final))
        finally:
            self.services.drain.work.discard(scope)

    def stopped(self) -> None:
        """Settle what was stopped."""
        lost = self.lease.lost
        if self.outcome is None:
            outcome, verdict = self.decide(LeaseLost() if lost else Interrupted())
            self.ended(outcome, verdict)
            self._settle(verdict, attempted=lost)
        else:
            verdict = Abandon() if lost else self.if_stopped
            self._settle(verdict, attempted=isinstance(verdict, Final))

    def _settle(self, verdict: Verdict, *, attempted: bool) -> None:
        self.final = isinstance(verdict, Final)
        self.again = verdict.delay if isinstance(verdict, Nak) else None
        settle(self.services, self.lease, self.attempt, verdict, attempted=attempted)

    async def caught(self, step: Awaitable[T]) -> T | Crashed:
        """The package's one net: a bug met by one message must not stop the others."""
        try:
            return await step
        except Exception as error:  # noqa: BLE001 -- that is what the net is for; Cancelled is no Exception
            self.services.emit(WorkCrashed(self.lease.delivery, error))
            return Crashed(error)

    async def attempt_it(self) -> tuple[Outcome, Verdict]:
        """Decode, invoke, decide."""
        return self.decide(await self._outcome())

    def decide(self, outcome: Outcome) -> tuple[Outcome, Verdict]:
        """What it means."""
        services = self.services
        verdict = decide(outcome, attempt=self.attempt, retry=self.retry, draw=services.rng(), now=services.utc_now())
        wait = self.slot.ended(self.began, trio.current_time(), status_of(outcome))
        if wait is not None and not isinstance(verdict, Ack):
            back = sooner(outcome, wait, now=services.utc_now())
            self.attempted, verdict = back is None, back or verdict
        return outcome, verdict

    async def _outcome(self) -> Outcome:
        config = self.services.config
        decoded = decode(self.lease.delivery, namespace=config.namespace, user_agent=config.user_agent)
        if isinstance(decoded, Malformed):
            return decoded
        invocation, complaint = decoded
        self._heed(invocation, complaint)
        if self.wait:
            await self.services.timers.wait(self.wait, "early redelivery")
        return await self._invoke(invocation)

    async def _invoke(self, invocation: Invocation) -> Attempted:
        self.invocation = invocation
        stored = self.lease.delivery.id[1] / 1e9
        self.services.emit(InvocationStarted(invocation, self.attempt, max(0.0, self.services.utc_now() - stored)))
        self.began = trio.current_time()
        self.slot.started(self.began)
        return await self.services.functions.invoke(invocation)

    def ended(self, outcome: Outcome, verdict: Verdict) -> None:
        """Tell the end of an invocation that was started, however it ended."""
        self.outcome = outcome
        if self.invocation:
            self.took = trio.current_time() - self.began
            self.services.emit(
                InvocationEnded(
                    self.invocation, self.attempt, self.retry.attempts, outcome, verdict, self.took, self.attempted
                )
            )

    async def conclude(self, outcome: Outcome, verdict: Final) -> Verdict:
        """What must have happened before a final verdict may be said, and the verdict that stands after it.

        Stopped in between, the message goes back to the queue, and its next delivery does all of it again; but a
        callback that has failed before does not make a function run twice: that one is given up with the drain.
        """

        def callback_failed() -> None:
            self.if_stopped = verdict

        if isinstance(verdict, Term) and not await self._bury(outcome, verdict):
            return Nak(self.retry.backoff.longest)
        if self.invocation:
            # The verdict stands whatever breaks here: a bug in telling the result must not run the function again.
            await self.caught(self._tell(self.invocation, outcome, callback_failed))
        return verdict

    async def _bury(self, outcome: Outcome, verdict: Term) -> bool:
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
        if keep and not await self._store(letter):
            return False
        self.services.emit(
            DeadLettered(delivery, letter.call_id, letter.function, letter.reason, letter.attempts, stored=keep)
        )
        return True

    async def _store(self, letter: DeadLetter) -> bool:
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

    async def _tell(self, invocation: Invocation, outcome: Outcome, failed_once: Callable[[], None]) -> None:
        callback = callback_of(
            invocation,
            outcome,
            attempt=min(self.attempt, self.retry.attempts),  # a delivery count may run past what was attempted
            attempts=self.retry.attempts,
            duration=self.took,
            user_agent=self.services.config.user_agent,
        )
        if callback:
            await call_back(callback, invocation, self.services, failed_once)

    def _heed(self, invocation: Invocation, complaint: str | None) -> None:
        """The function's annotations, and what is wrong with them or with the callback."""
        if complaint:
            self.services.emit(CallbackIgnored(invocation.call_id, invocation.label, complaint))
        self.retry, ignored = annotated(self.retry, invocation.annotations)
        if flow := self.slot.flow.function:
            quotas, annotations = self.services.quotas, invocation.annotations
            if annotations or quotas.of(flow):
                quota, unusable = quota_of(annotations)
                self.slot.flow.weight = quota.weight
                quotas.said(flow, quota, self.lease.delivery.id[1])
                ignored += unusable
        for each in ignored:
            self.services.emit(AnnotationIgnored(invocation.label, each.annotation, each.value, each.accepted))
