"""One connection to the broker: two pipes, and all that can go wrong with them.

Each pipe keeps the order of what is sent. It can stand still (a frozen network or server: everything comes, late),
swallow some kinds of messages, and be cut: what was in the air is then lost, and nothing is sent until it is mended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from math import inf

import trio


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
        self._air: deque[tuple[float, Callable[[], None]]] = deque()
        self._sent = trio.Event()

    def send(self, kind: str, effect: Callable[[], None]) -> None:
        """Have *effect* happen at the other end."""
        if kind not in self.swallows:
            self._air.append((trio.current_time() + self.latency, effect))
            self._sent.set()

    def clear(self) -> None:
        """Lose what is in the air."""
        self._air.clear()

    async def run(self) -> None:
        """Deliver, for ever."""
        while True:
            while not self._air:
                self._sent = trio.Event()
                await self._sent.wait()
            due = max(self._air[0][0], self.stands_until)
            if due > trio.current_time():
                await trio.sleep_until(due)  # what is in the air may be another thing by then
            else:
                self._air.popleft()[1]()


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

    def cut(self, seconds: float) -> None:
        """Break it for so long."""
        self._back_at = max(self._back_at, trio.current_time() + seconds)
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
                pipe.clear()
            for changed in self.changed:
                changed(up)
