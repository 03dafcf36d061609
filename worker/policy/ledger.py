"""The ledger: one worker's memory of the messages that it received before.

The queue's delivery count is the number of deliveries, not of attempts. It includes deliveries that a worker returned
unstarted, and a recreated consumer counts from one again. The ledger corrects the count for the messages of this
worker, and for those of which another worker announced the attempts. It is memory, not storage: after a restart, or for
messages beyond the newest *remember*, the delivery count stands. That count errs towards giving up early, never towards
losing or endlessly repeating a message.

The rules: a message that runs on this worker does not start a second time. A message that ended is settled again, not
run again. A message that arrives before its back-off is over is returned for the rest, or waits if little is left. A
message that starts needs more than that: see :func:`decide_delivery`.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from msgspec import Struct

from ..model import Abandon, Ack, AttemptCount, Delivery, Final, MessageId, Nak, Term, Verdict

EARLY = 0.05
"""Seconds before the end of its back-off at which a message may start: two clocks measure the same wait."""
HOLD = 1.0
"""Longest rest of a back-off (s) that a message waits in its slot. After a restart nats-server keeps waits to the
second, so a message can arrive up to 1 s early. Returning it would cost another delivery."""
NO_TOKEN = 0.1
"""Seconds until a message returns that arrived when there was no token for it, or when its function was paused."""


class Start(Struct, frozen=True, gc=False):
    """Run the message, as this attempt, after *delay* more seconds."""

    attempt: int
    delay: float = 0.0


class Extend(Struct, frozen=True, gc=False):
    """The message runs on this worker now: use the new delivery for the same lease."""


class SettleAgain(Struct, frozen=True, gc=False):
    """The message ended on this worker, but the queue did not receive the settlement."""

    verdict: Final


class Postpone(Struct, frozen=True, gc=False):
    """The message's back-off lasts for *remaining* more seconds: return it to the queue until then."""

    remaining: float


class GiveBack(Struct, frozen=True, gc=False):
    """Give the message back unstarted, to be redelivered after *delay* seconds."""

    attempt: int
    delay: float


Known = Start | Extend | SettleAgain | Postpone
Action = Known | GiveBack | Abandon


class _GivenBack(Struct, frozen=True, gc=False):
    num_delivered: int
    attempts: int
    due: float


class Ledger:
    """Memory of the messages that run on this worker, and of at most *remember* others.

    It holds as many announcements of other workers. They are apart, because they must not displace what ended here.
    """

    def __init__(self, remember: int = 20_000) -> None:
        self._remember = remember
        self._running: set[MessageId] = set()
        self._past: OrderedDict[MessageId, _GivenBack | Final] = OrderedDict()
        self._announced: OrderedDict[MessageId, _GivenBack] = OrderedDict()

    def classify(self, delivery: Delivery, *, now: float) -> Known:
        """Return what to do with a delivery.

        After :class:`Start` the message counts as running, until :meth:`record` or :meth:`abandon` is called.
        """
        if delivery.id in self._running:
            return Extend()
        past = self._past.get(delivery.id)
        if past is None and self._announced:
            past = self._announced.get(delivery.id)
        if past is None:
            self._running.add(delivery.id)
            return Start(delivery.num_delivered)
        if isinstance(past, Final):
            return SettleAgain(past)
        # One delivery more than recorded: the nak that was recorded, or announced, led to it. Fewer or as many: the
        # consumer was recreated, and has lost both the count and the wait. More: another worker had it in between.
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
        """Record the verdict on a message's newest delivery, after the *attempt* that :meth:`classify` returned.

        *counts* is whether it counts as one; a message that a drain returned, or that did not start, does not.
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
        """Note that a message does not start on this worker after all. Its entry stays."""
        self._running.discard(delivery.id)

    def count_to_announce(self, delivery: Delivery) -> AttemptCount | None:
        """Return what other workers need to count the attempts of a message that is nakked; None: its delivery count.

        Call it after :meth:`record`, or after :meth:`classify` returned :class:`Postpone`.
        """
        past = self._past.get(delivery.id)
        if isinstance(past, _GivenBack) and past.attempts != past.num_delivered:
            return AttemptCount(delivery.id, past.num_delivered, past.attempts)
        return None

    def learn(self, count: AttemptCount) -> None:
        """Record another worker's announcement, unless this worker has received the message later, or ended it.

        Where both count the attempts, the smaller number is right: what a worker knows nothing of, it counts as one.
        """
        own = self._past.get(count.id)
        known = own or self._announced.get(count.id)
        attempts = count.attempts
        if known is not None:
            if isinstance(known, Final) or count.num_delivered <= known.num_delivered:
                return
            attempts = min(attempts, known.attempts + count.num_delivered - known.num_delivered)
        past = _GivenBack(count.num_delivered, attempts, -inf)  # JetStream keeps its wait
        if own is not None:
            self._past[count.id] = past
            return
        self._announced[count.id] = past
        self._announced.move_to_end(count.id)
        if len(self._announced) > self._remember:
            self._announced.popitem(last=False)

    def _store(self, message: MessageId, past: _GivenBack | Final) -> None:
        self._past[message] = past
        self._past.move_to_end(message)
        if len(self._past) > self._remember:
            self._past.popitem(last=False)


def decide_delivery(known: Known, *, newest: bool, leased: bool, room: bool, token: bool) -> Action:
    """Start a delivery, give it back, or leave it to another worker; *known* is what the ledger has of its message.

    *newest*: no later delivery of the same message arrived in the same batch. Only the newest is given back, because a
    nak of the other would take the message from its next worker. *leased*: the message is still this worker's. It is
    not after it lay in a buffer while the process stood still. *room*: there is a slot. Credit makes it rare that there
    is none, but a pull request may outlive its connection. *token*: the flow may start another invocation. A token can
    get lost, or expire, while its message is on its way, and the function can be paused.
    """
    if isinstance(known, Start):
        if leased and room and token:
            return known
        return GiveBack(known.attempt, NO_TOKEN if room else 0.0) if newest and leased else Abandon()
    if isinstance(known, Postpone):
        return known if newest and leased else Abandon()
    return known
