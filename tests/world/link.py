"""One connection to the broker: two pipes, and their faults.

Each pipe keeps messages in order. It can stall, as with a frozen network or server, and deliver everything late; it
can drop some kinds of messages; and it can be cut. A cut loses the messages in flight, and nothing is sent until the
connection is restored. A cut can also be late: a server continues to read what a connection brought before the cut,
and this can take longer than to reconnect and to send the same again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf

import trio

SETTLING = frozenset({"settlement", "extension"})
"""Kinds of messages that settle or extend a delivery."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message in flight. *effect* is called when it arrives."""

    due: float
    kind: str
    effect: Callable[[], None]


class Pipe:
    """One direction of a connection.

    Args:
        latency: of each message (s).
    """

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.dropped_kinds: Collection[str] = ()
        """Kinds of messages that the pipe drops."""
        self.stalled_until = 0.0
        """Time (s) before which nothing arrives."""
        self._in_flight: deque[Sent] = deque()
        self._late: deque[Sent] = deque()
        """Messages of a connection that was cut, which the server still reads."""
        self._wait = trio.CancelScope()
        """Scope around the wait for the first arrival; a new message may shorten it."""

    def send(self, kind: str, effect: Callable[[], None], after: float = 0.0) -> None:
        """Call *effect* at the other end, *after* seconds later than the latency."""
        if kind not in self.dropped_kinds:
            self._in_flight.append(Sent(trio.current_time() + self.latency + after, kind, effect))
            self._wait.deadline = min(self._wait.deadline, self._next())

    def drop(self, late: float = 0.0) -> None:
        """Drop the messages in flight; with *late*, settlements and extensions arrive after so many seconds instead."""
        if late:
            due = trio.current_time() + late
            self._late.extend(Sent(due, sent.kind, sent.effect) for sent in self._in_flight if sent.kind in SETTLING)
            self._wait.deadline = min(self._wait.deadline, self._next())
        self._in_flight.clear()

    async def run(self) -> None:
        """Deliver messages forever."""
        while True:
            with trio.CancelScope(deadline=self._next()) as self._wait:
                await trio.sleep_forever()
            while self._next() <= trio.current_time():
                self._first().popleft().effect()

    def _first(self) -> deque[Sent]:
        """Return the queue that holds the next message."""
        return min(filter(None, (self._in_flight, self._late)), key=lambda queue: queue[0].due)

    def _next(self) -> float:
        """Return the time (s) of the next arrival."""
        return max(self._first()[0].due, self.stalled_until) if self._in_flight or self._late else inf


class Link:
    """A connection between a worker and the broker.

    Args:
        latency: of each message, either way (s).
        up: whether it can be opened from the start.
    """

    def __init__(self, latency: float, *, up: bool = True) -> None:
        self.to_broker, self.from_broker = Pipe(latency), Pipe(latency)
        """Pipes to the broker, and from it."""
        self.changed: list[Callable[[bool], None]] = []
        """Callbacks for a connection that was opened or lost."""
        self._up_at = 0.0 if up else inf
        self._woken = trio.Event()
        self.up = False

    def cut(self, seconds: float, late: float = 0.0) -> None:
        """Cut the connection for *seconds*; *late*: seconds until earlier settlements arrive, or 0 to drop them."""
        self._up_at = max(self._up_at, trio.current_time() + seconds)
        if self.up:
            self.to_broker.drop(late)
        self._set(up=False)
        self._woken.set()

    def restore(self) -> None:
        """Restore the connection now."""
        self._up_at = trio.current_time()
        self._woken.set()

    def stall(self, seconds: float) -> None:
        """Delay all messages in both directions for *seconds*."""
        for pipe in (self.to_broker, self.from_broker):
            pipe.stalled_until = trio.current_time() + seconds

    async def run(self) -> None:
        """Open the connection and carry messages, forever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.to_broker.run)
            nursery.start_soon(self.from_broker.run)
            while True:
                self._woken = trio.Event()
                if not self.up and trio.current_time() >= self._up_at:
                    self._set(up=True)
                with trio.move_on_at(inf if self.up else self._up_at):
                    await self._woken.wait()

    def _set(self, *, up: bool) -> None:
        if up != self.up:
            self.up = up
            for pipe in (self.to_broker, self.from_broker):
                pipe.drop()
            for changed in self.changed:
                changed(up)
