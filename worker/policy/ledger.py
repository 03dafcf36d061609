"""What this worker knows of messages it has had before.

The queue's delivery count says how often a message was handed out, not how often it was attempted: it also counts what
we handed back unstarted, and a consumer made anew counts from one again. The ledger corrects what this worker saw.
It is memory, not storage: what it forgets (a restart, more than *remember* messages) falls back to the delivery count,
which errs towards giving up early, never towards losing or endlessly repeating.

Its laws: a message that runs here is not run a second time here; a message that ended here is settled again, not run
again; one that comes back before its back-off is over goes back for the rest of it, or waits here where little is left.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from ..model import Ack, Delivery, Final, MessageId, Nak, Term, Verdict

EARLY = 0.05
"""Seconds a message may come before its back-off is over and still be run: two clocks measure the same wait."""


HOLD = 1.0
"""Seconds of back-off left that we wait out ourselves. nats-server keeps waits over a restart to the second, so a
message can come up to one early; giving it back once more would cost a delivery, holding it for so long only a slot."""


class Fresh(Struct, frozen=True, gc=False):
    """To be run, as this attempt, after *wait* more seconds."""

    attempt: int
    wait: float = 0.0


class Running(Struct, frozen=True, gc=False):
    """It runs here now: the new delivery is the same lease on it."""


class Finished(Struct, frozen=True, gc=False):
    """It ended here; the queue has not heard."""

    verdict: Final


class Early(Struct, frozen=True, gc=False):
    """Its back-off has *remaining* seconds to go."""

    remaining: float


Arrival = Fresh | Running | Finished | Early


class _GivenBack(Struct, frozen=True, gc=False):
    count: int
    attempts: int
    due: float


class Ledger:
    """Memory of at most *remember* messages that are no longer running."""

    def __init__(self, remember: int = 20_000) -> None:
        self._remember = remember
        self._running: set[MessageId] = set()
        self._past: OrderedDict[MessageId, _GivenBack | Final] = OrderedDict()

    def classify(self, delivery: Delivery, *, now: float) -> Arrival:
        """What to do with a delivery. After :class:`Fresh` it counts as running until it :meth:`record`."""
        if delivery.id in self._running:
            return Running()
        past = self._past.get(delivery.id)
        if past is None:
            self._running.add(delivery.id)
            return Fresh(delivery.num_delivered)
        if isinstance(past, Final):
            return Finished(past)
        since = delivery.num_delivered - past.count
        # One more than when we had it: it is our own give-back that returns. Fewer or as many: the consumer was made
        # anew and has forgotten both the count and the wait. More: someone else has had it meanwhile.
        attempts = past.attempts + (since - 1 if since > 0 else delivery.num_delivered - 1)
        remaining = past.due - now
        if since > 1 or remaining <= EARLY:
            remaining = 0.0
        if remaining > HOLD:
            self._keep(delivery.id, _GivenBack(delivery.num_delivered, attempts, past.due))
            return Early(remaining)
        self._running.add(delivery.id)
        return Fresh(attempts + 1, remaining)

    def record(self, delivery: Delivery, attempt: int, verdict: Verdict, *, counts: bool, now: float) -> None:
        """The message no longer runs here.

        Args:
            delivery: its newest delivery.
            attempt: the number that :meth:`classify` gave it.
            verdict: what was decided.
            counts: whether it counts as an attempt; what we gave back to shut down, or before starting it, does not.
            now: the time of the verdict, on the clock that :meth:`classify` is told.
        """
        self._running.discard(delivery.id)
        match verdict:
            case Ack() | Term():
                self._keep(delivery.id, verdict)
            case Nak(delay):
                attempts = attempt if counts else attempt - 1
                self._keep(delivery.id, _GivenBack(delivery.num_delivered, attempts, now + delay))
            case _:  # abandoned: others have it, and what they do we cannot count
                self._past.pop(delivery.id, None)

    def _keep(self, message: MessageId, past: _GivenBack | Final) -> None:
        self._past[message] = past
        self._past.move_to_end(message)
        if len(self._past) > self._remember:
            self._past.popitem(last=False)
