"""What JetStream's pull consumer keeps, and what it makes of what it hears. No clock: time (s) is an argument.

Its law is that of nats-server 2.15 (``server/consumer.go``, and ``encodeConsumerState`` in ``server/store.go``), also
where one would wish otherwise:

* All is keyed by the message's stream sequence, not by the delivery. Only a NAK names its delivery: it is passed over
  where that cannot be one of this consumer's, made anew or gone back in time.
* All is answered, also what makes no difference, except the end of a message that the consumer has not come to.
* What was handed out is due its ack wait later; an extension begins that anew; a NAK's delay moves it. So another ack
  wait moves all that wait.
* What is due, or was given back without a delay, stands in a queue and goes before what is new. An extension does not
  take it out of that queue; a NAK with a delay does.
* A disk keeps of all this what a restart needs, by the second, and less than one would think. The queue is not kept.
  And for a message that was neither extended nor given back with a delay since it was handed out, its ack wait is
  counted from when it was *published*.
* The disk is written at once if that was not done for 100 ms, else when they are over. A crash goes back to what was
  written last.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from math import floor, inf

FLUSH = 0.1
"""Least time (s) between two writes of the state."""
RECONSIDER = 0.1
"""Seconds after another ack wait was set until it counts."""


@dataclass(slots=True)
class Pending:
    """A message that was handed out and has not ended."""

    number: int
    """Of its first delivery, among all deliveries of the consumer."""
    since: float
    """Its ack wait counts from then."""
    kept: float
    """The same, as the disk has it."""
    naked: bool = False
    """It waits for a NAK's delay, not for somebody's answer."""


@dataclass(slots=True)
class State:
    """What outlives the server."""

    reached: int = 0
    """The last stream sequence that was ever handed out."""
    handed: int = 0
    """How many deliveries there were."""
    pending: dict[int, Pending] = field(default_factory=dict)
    """By stream sequence, in the order of the first deliveries."""
    again: dict[int, int] = field(default_factory=dict)
    """How often a message came again, for those that did and have not ended."""

    def copy(self) -> State:
        pending = {sequence: replace(each) for sequence, each in self.pending.items()}
        return State(self.reached, self.handed, pending, dict(self.again))


class PullConsumer:
    """The books of one consumer.

    Args:
        ack_wait: seconds.
    """

    def __init__(self, ack_wait: float) -> None:
        self.begin(ack_wait)

    def begin(self, ack_wait: float, first: int = 1) -> None:
        """Know nothing: be made, perhaps anew, for a stream whose first message has that sequence."""
        self.ack_wait = ack_wait
        self.state = State(reached=first - 1)
        self.due: deque[int] = deque()
        """What goes before what is new, unless it has ended meanwhile."""
        self._quiet_until = -inf
        """Nothing falls due before."""
        self._disk = self.state.copy()
        self._written = -inf
        self._to_write = inf
        """When the disk will have what is said now."""

    def held(self, sequence: int) -> bool:
        """Whether somebody has it, and in time."""
        pending = self.state.pending.get(sequence)
        return pending is not None and not pending.naked and sequence not in self.due

    def hand_out(self, sequence: int, published: float, now: float) -> tuple[int, int]:
        """Deliver a message; the delivery's count for this message, and its number among all."""
        self._write(now)
        state = self.state
        state.handed += 1
        if pending := state.pending.get(sequence):
            pending.since, pending.kept, pending.naked = now, published, False
            state.again[sequence] = state.again.get(sequence, 0) + 1
        else:
            state.pending[sequence] = Pending(state.handed, now, published)
            state.reached = max(state.reached, sequence)
        return state.again.get(sequence, 0) + 1, state.handed

    def end(self, sequence: int, now: float) -> bool:
        """An acknowledgement; whether it is heeded, and answered."""
        if sequence > self.state.reached:
            return False
        self._write(now)
        self.forget(sequence)
        return True

    def forget(self, sequence: int) -> None:
        """That message is no more."""
        self.state.pending.pop(sequence, None)
        self.state.again.pop(sequence, None)

    def extend(self, sequence: int, now: float) -> None:
        """A sign of work."""
        if pending := self.state.pending.get(sequence):
            self._write(now)
            pending.since = pending.kept = now
            pending.naked = False

    def give_back(self, sequence: int, number: int, delay: float, now: float) -> bool:
        """A NAK of a delivery; whether it is heeded."""
        pending = self.state.pending.get(sequence)
        if pending is None or not self._floor() < number <= self.state.handed + 1:
            return False
        pending.naked = True
        if delay > 0:
            self._write(now)
            pending.since = pending.kept = now - self.ack_wait + delay
            if sequence in self.due:
                self.due.remove(sequence)
        elif sequence not in self.due:
            self.due.append(sequence)
        return True

    def configure(self, ack_wait: float, now: float) -> None:
        """Another ack wait moves all that wait; what is due then comes a tenth of a second later."""
        self.ack_wait = ack_wait
        self._quiet_until = now + RECONSIDER

    def put_back(self, sequence: int) -> None:
        """Nobody was there for it after all: if it stood in the queue, it goes to its end."""
        if sequence in self.state.pending:
            self.due.append(sequence)

    def expire(self, now: float) -> None:
        """Put what is due by now into the queue, the lowest sequence first."""
        if now < self._quiet_until:
            return
        expired = [
            sequence
            for sequence, pending in self.state.pending.items()
            if pending.since + self.ack_wait <= now and sequence not in self.due
        ]
        self.due.extend(sorted(expired))

    def next_due(self) -> float:
        """When there will be something to expire."""
        waiting = (each.since for sequence, each in self.state.pending.items() if sequence not in self.due)
        return max(min(waiting, default=inf) + self.ack_wait, self._quiet_until)

    # Losing the memory.

    def stop(self) -> None:
        """End in order: all is written."""
        self._disk = self.state.copy()

    def crash(self, now: float) -> None:
        """End at once: what was not written by now never was."""
        if self._to_write < now:
            self._disk = self.state.copy()

    def start(self) -> None:
        """Go on with what the disk has: whole seconds."""
        self.state = self._disk.copy()
        for pending in self.state.pending.values():
            pending.since = pending.kept = floor(pending.kept)
        self._to_write = inf
        self.due.clear()

    def take_over(self) -> None:
        """Go on elsewhere, as another replica that knows all that a disk would be told: not rounded."""
        for pending in self.state.pending.values():
            pending.since = pending.kept
        self.due.clear()

    def _write(self, now: float) -> None:
        """To be called before a change."""
        if self._to_write < now:
            self._disk, self._written, self._to_write = self.state.copy(), self._to_write, inf
        if self._to_write == inf:
            self._to_write = max(now, self._written + FLUSH)

    def _floor(self) -> int:
        """The number of the last delivery before the first that has not ended."""
        first = next(iter(self.state.pending.values()), None)
        return first.number - 1 if first else self.state.handed
