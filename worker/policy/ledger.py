"""What this worker remembers of messages that it received before.

The queue's delivery count says how often a message was delivered, not how often it was attempted. It also counts
deliveries that were given back unstarted, and a recreated consumer counts from one again. The ledger corrects what this
worker saw. It is memory, not storage: what it forgets (a restart, more than *remember* messages) falls back to the
delivery count, which errs towards giving up early, never towards losing or endlessly repeating.

Its laws: a message that runs here does not run a second time here. A message that ended here is settled again, not run
again. One that arrives before its back-off is over goes back for the rest of it, or waits here where little is left.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from ..model import Ack, Delivery, Final, MessageId, Nak, Term, Verdict

EARLY = 0.05
"""Seconds that a message may arrive before its back-off is over and still start: two clocks measure the same wait."""
HOLD = 1.0
"""Seconds of back-off that a slot waits for. nats-server keeps waits over a restart to the second, so a message can
arrive up to one early. Giving it back again would cost a delivery; holding it costs a slot for so long."""


class Start(Struct, frozen=True, gc=False):
    """Run the message, as this attempt, after *delay* more seconds."""

    attempt: int
    delay: float = 0.0


class Extend(Struct, frozen=True, gc=False):
    """The message runs here now: use the new delivery for the same lease."""


class SettleAgain(Struct, frozen=True, gc=False):
    """The message ended here and the queue did not receive the settlement."""

    verdict: Final


class Postpone(Struct, frozen=True, gc=False):
    """The message's back-off has *remaining* seconds to go: give it back for so long."""

    remaining: float


Known = Start | Extend | SettleAgain | Postpone


class _GivenBack(Struct, frozen=True, gc=False):
    num_delivered: int
    attempts: int
    due: float


class Ledger:
    """Memory of the messages that run here, and of at most *remember* others."""

    def __init__(self, remember: int = 20_000) -> None:
        self._remember = remember
        self._running: set[MessageId] = set()
        self._past: OrderedDict[MessageId, _GivenBack | Final] = OrderedDict()

    def classify(self, delivery: Delivery, *, now: float) -> Known:
        """Return what the memory of a message implies for a delivery.

        After :class:`Start` the message counts as running, until :meth:`record` or :meth:`abandon` is called.
        """
        if delivery.id in self._running:
            return Extend()
        past = self._past.get(delivery.id)
        if past is None:
            self._running.add(delivery.id)
            return Start(delivery.num_delivered)
        if isinstance(past, Final):
            return SettleAgain(past)
        # One delivery more than this worker saw: its own NAK returns. Fewer or as many: the consumer was recreated, and
        # has forgotten both the count and the wait. More: another worker had the message in between.
        more = delivery.num_delivered - past.num_delivered
        attempts = past.attempts + (more - 1 if more > 0 else delivery.num_delivered - 1)
        remaining = past.due - now
        if more > 1 or remaining <= EARLY:
            remaining = 0.0
        if remaining > HOLD:
            self._store(delivery.id, _GivenBack(delivery.num_delivered, attempts, past.due))
            return Postpone(remaining)
        self._running.add(delivery.id)
        return Start(attempts + 1, remaining)

    def record(self, delivery: Delivery, attempt: int, verdict: Verdict, *, counts: bool, now: float) -> None:
        """Record how a message ended here.

        Args:
            delivery: its newest delivery.
            attempt: the number that :meth:`classify` gave it.
            verdict: the verdict.
            counts: whether it counts as an attempt; a message that was given back by a drain, or unstarted, does not.
            now: the time of the verdict, on the clock of :meth:`classify`.
        """
        self._running.discard(delivery.id)
        match verdict:
            case Ack() | Term():
                self._store(delivery.id, verdict)
            case Nak(delay):
                attempts = attempt if counts else attempt - 1
                self._store(delivery.id, _GivenBack(delivery.num_delivered, attempts, now + delay))
            case _:  # abandoned: another worker may have it, and this one cannot count its attempts
                self._past.pop(delivery.id, None)

    def abandon(self, delivery: Delivery) -> None:
        """Note that a message does not start here after all. The memory of it stays."""
        self._running.discard(delivery.id)

    def _store(self, message: MessageId, past: _GivenBack | Final) -> None:
        self._past[message] = past
        self._past.move_to_end(message)
        if len(self._past) > self._remember:
            self._past.popitem(last=False)
