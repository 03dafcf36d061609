"""The state of JetStream's pull consumer, and its rules. It has no clock: time (s) is an argument.

The rules are those of nats-server 2.15 (``server/consumer.go``, and ``encodeConsumerState`` in ``server/store.go``),
including the surprising ones:

* The key of all state is the message's stream sequence, not the delivery. Only a NAK names its delivery: the consumer
  ignores it if that delivery cannot be its own, because the consumer was recreated or lost state in a crash.
* The consumer answers every verb, also one without effect, except the end of a message that it has not delivered yet.
* A delivered message is due after its ack wait; an extension restarts that wait, and a NAK's delay changes it. So a
  change of the ack wait moves the due times of all pending messages.
* A message that is due, or was nakked without a delay, stands in a queue and is delivered before new messages. An
  extension does not take it out of that queue; a NAK with a delay does.
* The disk keeps only what a restart needs, with times in whole seconds, and does not keep the queue. The ack wait of a
  message that was neither extended nor nakked with a delay since its delivery then counts from when it was *published*.
* The state is written at once if the last write was at least 100 ms ago, else 100 ms after it. A crash restores the
  state that was written last.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from math import floor, inf

FLUSH = 0.1
"""Least time (s) between two writes of the state."""
RECONSIDER = 0.1
"""Seconds after a change of the ack wait until it applies."""


@dataclass(slots=True)
class Pending:
    """A message that was delivered and has not ended."""

    number: int
    """Number of its first delivery, among all deliveries of the consumer."""
    since: float
    """Time (s) from which its ack wait counts."""
    since_on_disk: float
    """Value of ``since`` on the disk."""
    is_nakked: bool = False
    """Whether the message waits for a NAK's delay, not for a settlement."""


@dataclass(slots=True)
class State:
    """State that survives a restart of the server."""

    last_delivered: int = 0
    """The highest stream sequence that was ever delivered."""
    num_deliveries: int = 0
    """Number of deliveries."""
    pending: dict[int, Pending] = field(default_factory=dict)
    """Stream sequence -> pending message, in the order of the first deliveries."""
    redelivered: dict[int, int] = field(default_factory=dict)
    """Stream sequence -> number of redeliveries, for messages that were redelivered and have not ended."""

    def copy(self) -> State:
        pending = {sequence: replace(each) for sequence, each in self.pending.items()}
        return State(self.last_delivered, self.num_deliveries, pending, dict(self.redelivered))


class PullConsumer:
    """State and rules of one consumer.

    Args:
        ack_wait: seconds.
    """

    def __init__(self, ack_wait: float) -> None:
        self.reset(ack_wait)

    def reset(self, ack_wait: float, first: int = 1) -> None:
        """Reset all state, as for a new consumer of a stream whose first message has the sequence *first*."""
        self.ack_wait = ack_wait
        self.state = State(last_delivered=first - 1)
        self.due: deque[int] = deque()
        """Sequences to deliver before new messages, unless they have ended since."""
        self._quiet_until = -inf
        """Time (s) before which no message is due."""
        self._disk = self.state.copy()
        self._written = -inf
        self._to_write = inf
        """Time (s) of the next write."""

    def held(self, sequence: int) -> bool:
        """Return whether a worker holds the message within its ack wait."""
        pending = self.state.pending.get(sequence)
        return pending is not None and not pending.is_nakked and sequence not in self.due

    def deliver(self, sequence: int, published: float, now: float) -> tuple[int, int]:
        """Deliver a message, and return the delivery's count for this message and its number among all deliveries."""
        self._write(now)
        state = self.state
        state.num_deliveries += 1
        if pending := state.pending.get(sequence):
            pending.since, pending.since_on_disk, pending.is_nakked = now, published, False
            state.redelivered[sequence] = state.redelivered.get(sequence, 0) + 1
        else:
            state.pending[sequence] = Pending(state.num_deliveries, now, published)
            state.last_delivered = max(state.last_delivered, sequence)
        return state.redelivered.get(sequence, 0) + 1, state.num_deliveries

    def end(self, sequence: int, now: float) -> bool:
        """End a message by an ack or term, and return whether the consumer accepts and answers it."""
        if sequence > self.state.last_delivered:
            return False
        self._write(now)
        self.forget(sequence)
        return True

    def forget(self, sequence: int) -> None:
        """Delete the state of a message that has left the stream."""
        self.state.pending.pop(sequence, None)
        self.state.redelivered.pop(sequence, None)

    def extend(self, sequence: int, now: float) -> None:
        """Restart the ack wait of a message (+WPI)."""
        if pending := self.state.pending.get(sequence):
            self._write(now)
            pending.since = pending.since_on_disk = now
            pending.is_nakked = False

    def nak(self, sequence: int, number: int, delay: float, now: float) -> bool:
        """Apply a NAK of a delivery, and return whether it is valid."""
        pending = self.state.pending.get(sequence)
        if pending is None or not self._ack_floor() < number <= self.state.num_deliveries + 1:
            return False
        pending.is_nakked = True
        if delay > 0:
            self._write(now)
            pending.since = pending.since_on_disk = now - self.ack_wait + delay
            if sequence in self.due:
                self.due.remove(sequence)
        elif sequence not in self.due:
            self.due.append(sequence)
        return True

    def configure(self, ack_wait: float, now: float) -> None:
        """Change the ack wait of all pending messages; those that are due then follow 100 ms later."""
        self.ack_wait = ack_wait
        self._quiet_until = now + RECONSIDER

    def requeue(self, sequence: int) -> None:
        """Append a pending message to the queue again, because no request was open for it."""
        if sequence in self.state.pending:
            self.due.append(sequence)

    def expire(self, now: float) -> None:
        """Append the messages that are due to the queue, the lowest sequence first."""
        if now < self._quiet_until:
            return
        expired = [
            sequence
            for sequence, pending in self.state.pending.items()
            if pending.since + self.ack_wait <= now and sequence not in self.due
        ]
        self.due.extend(sorted(expired))

    def next_due(self) -> float:
        """Return the time (s) at which the next message is due."""
        waiting = (each.since for sequence, each in self.state.pending.items() if sequence not in self.due)
        return max(min(waiting, default=inf) + self.ack_wait, self._quiet_until)

    # Loss of state.

    def stop(self) -> None:
        """Stop in order, after writing all state."""
        self._disk = self.state.copy()

    def crash(self, now: float) -> None:
        """Stop at once, and lose the state that was not written yet."""
        if self._to_write < now:
            self._disk = self.state.copy()

    def start(self) -> None:
        """Restore the state on the disk, with its times in whole seconds."""
        self.state = self._disk.copy()
        for pending in self.state.pending.values():
            pending.since = pending.since_on_disk = floor(pending.since_on_disk)
        self._to_write = inf
        self.due.clear()

    def take_over(self) -> None:
        """Continue as another replica, which has all state that is written to disk, without rounding."""
        for pending in self.state.pending.values():
            pending.since = pending.since_on_disk
        self.due.clear()

    def _write(self, now: float) -> None:
        """Schedule a write of the state, or perform the one that is due; call this before each change."""
        if self._to_write < now:
            self._disk, self._written, self._to_write = self.state.copy(), self._to_write, inf
        if self._to_write == inf:
            self._to_write = max(now, self._written + FLUSH)

    def _ack_floor(self) -> int:
        """Return the number of the last delivery before the first pending one."""
        first = next(iter(self.state.pending.values()), None)
        return first.number - 1 if first else self.state.num_deliveries
