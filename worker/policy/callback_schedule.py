"""The times at which stored callbacks are sent again, by the state of their receivers.

A receiver that fails rests, for longer after each failure. While it rests, its callbacks are postponed without being
sent; then one of them, the probe, finds out whether it answers. So a receiver that is away costs one request in a rest,
however many callbacks wait for it. After a success it takes more at once with each answer.

A postponed callback returns to the broker with a wait that grows with the number of its deliveries. The state here is
one worker's memory: a worker without it sends one probe, and has it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from msgspec import Struct

from .retry import Backoff

PLACES = 100
"""Stored callbacks that are sent at once. A receiver with none in flight may have one of as many again, so that those
that are slow block no other."""
MAX_PER_RECEIVER = 16
"""Stored callbacks that are sent at once to one receiver."""
MAX_BYTES = 32 * 1024 * 1024
"""Bytes of the stored callbacks that are in memory, above which no more are requested."""
LONGEST_ASKED = 3_600.0
"""Longest wait (s) that a receiver may ask for by Retry-After, as a function may."""
EARLY = 0.05
"""Seconds before its time at which a callback may be sent."""
_REMEMBERED = 10_000
"""Receivers whose failures are remembered: URLs are foreign input."""


class Post(Struct, frozen=True, gc=False):
    """Send the callback now."""


class Postpone(Struct, frozen=True, gc=False):
    """Return the callback to the broker for *delay* seconds."""

    delay: float


class Expire(Struct, frozen=True, gc=False):
    """Give the callback up."""


@dataclass(slots=True, eq=False)
class _Receiver:
    in_flight: int = 0
    limit: int = MAX_PER_RECEIVER
    failures: int = 0
    rests_until: float = float("-inf")
    failed_at: float = float("-inf")


class CallbackSchedule:
    """The receivers of one worker, by scheme, host and port. *backoff* is the wait after each failure."""

    def __init__(self, backoff: Backoff, max_age: float) -> None:
        self._backoff, self._max_age = backoff, max_age
        self._receivers: OrderedDict[str, _Receiver] = OrderedDict()
        self.in_flight = 0

    def decide(
        self, receiver: str, *, deliveries: int, age: float, due_in: float, now: float, draw: float
    ) -> Post | Postpone | Expire:
        """Return what to do with a delivery of a stored callback; after :class:`Post` it counts as in flight.

        Args:
            receiver: scheme, host and port of its URL.
            deliveries: number of its deliveries, including this one.
            age: seconds since it was stored.
            due_in: seconds until the time before which it must not be sent.
            now: time (s).
            draw: a random number in [0, 1).
        """
        left = self._max_age - age
        if left <= 0:
            return Expire()
        if due_in > EARLY:
            return Postpone(min(due_in, left, LONGEST_ASKED))
        state = self._receivers.get(receiver) or _Receiver()
        rest = state.rests_until - now
        room = self.in_flight < PLACES or (not state.in_flight and self.in_flight < 2 * PLACES)
        if rest <= 0 and state.in_flight < state.limit and room:
            self._receivers.setdefault(receiver, state)
            state.in_flight += 1
            self.in_flight += 1
            return Post()
        return Postpone(min(max(rest, self._backoff.delay(deliveries, draw=draw)), left))

    def end(self, receiver: str) -> None:
        """Note that a callback is not in flight any more."""
        state = self._receivers[receiver]
        state.in_flight -= 1
        self.in_flight -= 1
        self._forget(receiver, state)

    def succeeded(self, receiver: str) -> None:
        """Note that a receiver has taken a callback: it takes more at once."""
        if state := self._receivers.get(receiver):
            state.failures, state.rests_until = 0, float("-inf")
            state.limit = min(MAX_PER_RECEIVER, state.limit + 1)
            self._forget(receiver, state)

    def failed(self, receiver: str, *, began: float, now: float, asked: float, draw: float) -> None:
        """Note a failure, after which a retry may succeed, of a try that began at *began*: the receiver rests.

        *asked* is the wait (s) that it asked for, 0 for none. Of tries that were in flight together, the first counts.
        """
        state = self._receivers.setdefault(receiver, _Receiver())
        if began >= state.failed_at:
            state.failures += 1
            state.failed_at = now
            state.limit = max(1, state.limit // 2)
            state.rests_until = now + self._backoff.delay(state.failures, draw=draw)
        state.rests_until = max(state.rests_until, now + min(asked, LONGEST_ASKED))
        self._receivers.move_to_end(receiver)
        if len(self._receivers) > _REMEMBERED:
            idle = next((name for name, each in self._receivers.items() if not each.in_flight), receiver)
            self._forget(idle, self._receivers[idle], failed=True)

    def wait_after(self, deliveries: int, *, age: float, asked: float, draw: float) -> float:
        """Return the wait (s) of a callback that has failed, after so many deliveries; at most until it expires."""
        wait = max(self._backoff.delay(deliveries, draw=draw), min(asked, LONGEST_ASKED))
        return min(wait, max(0.0, self._max_age - age))

    def _forget(self, receiver: str, state: _Receiver, *, failed: bool = False) -> None:
        """Forget a receiver of which there is nothing to remember."""
        if not state.in_flight and (failed or (not state.failures and state.limit == MAX_PER_RECEIVER)):
            self._receivers.pop(receiver, None)
