"""One connection to the broker: two pipes, and all that can go wrong with them.

Each pipe keeps the order of what is sent. It can stand still (a frozen network or server: everything comes, late),
swallow some kinds of messages, and be cut: what was in the air is then lost, and nothing is sent until it is mended.
Or it is not lost: a server goes on to read what a connection brought before it was cut, and that can take longer than
to make the next connection and to say it there again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf

import trio

SAID = frozenset({"settlement", "extension"})
"""What is said about messages."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message in the air. *effect* happens when it arrives."""

    due: float
    kind: str
    effect: Callable[[], None]


class Pipe:
    """One direction.

    Args:
        latency: of each message (s).
    """

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.swallows: Collection[str] = ()
        """Kinds of messages that do not arrive."""
        self.stands_until = 0.0
        """Nothing arrives before."""
        self._air: deque[Sent] = deque()
        self._late: deque[Sent] = deque()
        """What a connection that was cut has brought."""
        self._wait = trio.CancelScope()
        """Around waiting for what comes first; what is sent may shorten it."""

    def send(self, kind: str, effect: Callable[[], None], after: float = 0.0) -> None:
        """Have *effect* happen at the other end, *after* so many seconds more than it takes."""
        if kind not in self.swallows:
            self._air.append(Sent(trio.current_time() + self.latency + after, kind, effect))
            self._wait.deadline = min(self._wait.deadline, self._next())

    def lose(self, late: float = 0.0) -> None:
        """Lose what is in the air; *late*: not what is said about messages, which arrives after so many seconds."""
        if late:
            due = trio.current_time() + late
            self._late.extend(Sent(due, sent.kind, sent.effect) for sent in self._air if sent.kind in SAID)
            self._wait.deadline = min(self._wait.deadline, self._next())
        self._air.clear()

    async def run(self) -> None:
        """Deliver, for ever."""
        while True:
            with trio.CancelScope(deadline=self._next()) as self._wait:
                await trio.sleep_forever()
            while self._next() <= trio.current_time():
                self._first().popleft().effect()

    def _first(self) -> deque[Sent]:
        """Where what comes first is."""
        return min(filter(None, (self._air, self._late)), key=lambda queue: queue[0].due)

    def _next(self) -> float:
        """When it comes."""
        return max(self._first()[0].due, self.stands_until) if self._air or self._late else inf


class Link:
    """A connection between a worker and the broker.

    Args:
        latency: of each message, either way (s).
        up: whether it can be made from the start.
    """

    def __init__(self, latency: float, *, up: bool = True) -> None:
        self.there, self.down = Pipe(latency), Pipe(latency)
        """To the broker, and from it."""
        self.changed: list[Callable[[bool], None]] = []
        """Called when the connection has come or gone."""
        self._back_at = 0.0 if up else inf
        self._moved = trio.Event()
        self.up = False

    def cut(self, seconds: float, late: float = 0.0) -> None:
        """Break it for so long; *late*: when what was said before arrives, if it does."""
        self._back_at = max(self._back_at, trio.current_time() + seconds)
        if self.up:
            self.there.lose(late)
        self._set(up=False)
        self._moved.set()

    def mend(self) -> None:
        """Let it be made now."""
        self._back_at = trio.current_time()
        self._moved.set()

    def stand_still(self, seconds: float) -> None:
        """Let nothing arrive, either way, for so long."""
        for pipe in (self.there, self.down):
            pipe.stands_until = trio.current_time() + seconds

    async def run(self) -> None:
        """Carry, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.there.run)
            nursery.start_soon(self.down.run)
            while True:
                self._moved = trio.Event()
                if not self.up and trio.current_time() >= self._back_at:
                    self._set(up=True)
                with trio.move_on_at(inf if self.up else self._back_at):
                    await self._moved.wait()

    def _set(self, *, up: bool) -> None:
        if up != self.up:
            self.up = up
            for pipe in (self.there, self.down):
                pipe.lose()
            for changed in self.changed:
                changed(up)
